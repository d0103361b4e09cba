"""Methods side by side: trained and asked alike under one budget, in one report."""
