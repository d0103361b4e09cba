"""/medsa/status: what is served, what is new, what comes next; as JSON and as a page."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from medsa.server.routes.common import AnyUser, App

router = APIRouter(prefix="/medsa", tags=["App"])

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>medsa</title><meta http-equiv="refresh" content="15">
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0 }}
tr {{ border-bottom: 1px solid #ddd }}
th {{ white-space: nowrap; font-weight: 600 }}
</style></head><body><h1>medsa</h1><table>{rows}</table>{figures}</body></html>
"""
COLUMNS = ("1 pt", "3 pts", "10 pts", "auc", "box", "background")
MODELS = {"candidate": "this version", "current": "the one before it", "base": "the base"}


@router.get("/status", summary="What is served, what is new since, and what comes next")
def get_status(app: App, _user: AnyUser) -> dict[str, Any]:
    return app.retraining.status()


@router.get("/status.html", include_in_schema=False)
def get_page(app: App, _user: AnyUser) -> HTMLResponse:
    return HTMLResponse(page(app.retraining.status()))


def page(status: dict[str, Any]) -> str:
    """The status as an HTML page that renews itself."""
    decision, now = status["last_decision"], status["round"]
    rows = {
        "Served": f"{status['version']}{', made ' + status['made'] if status['made'] else ''}",
        "Labelled images": f"{status['labels']}, {status['new_labels']} of them new since the last round",
        "Next round": _next(status),
        "Now": _now(now) if now else "no round since the server started",
        "Last decision": f"{decision['when']}: {_said(decision)}" if decision else "none yet",
    }
    if status["problem"]:
        rows["Problem"] = status["problem"]
    shown = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return PAGE.format(rows=shown, figures=_figures(status["figures"]))


def _next(status: dict[str, Any]) -> str:
    ways = [f"at {status['next_run']}"] if status["next_run"] else []
    if status["retrain_after"]:
        ways.append(f"after {status['retrain_after']} newly labelled images")
    return " or ".join(ways) or "when somebody asks for it (POST /train/medsa)"


def _now(task: dict[str, Any]) -> str:
    progress = task.get("progress")
    part = f": {progress['what']}, {100 * progress['part']:.0f} %" if progress else ""
    last = f" - {task['details'][-1]}" if task["details"] and not progress else ""
    return f"{task['status'].lower()}, begun {task['start_ts']}{part}{last}"


def _said(decision: dict[str, Any]) -> str:
    what = {"decided": "promoted" if decision.get("promoted") else "refused"}.get(
        decision["event"], decision["event"]
    )
    return f"{decision.get('version') or ''} {what}. {'; '.join(decision.get('reasons', ()))}".strip()


def _figures(figures: dict[str, float]) -> str:
    if not figures:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("Dice on held-out patients", *COLUMNS))
    body = "".join(
        f"<tr><th>{shown}</th>"
        + "".join(
            f"<td>{figures.get(f'{model}, held-out, {name}', float('nan')):.3f}</td>" for name in COLUMNS
        )
        + "</tr>"
        for model, shown in MODELS.items()
    )
    return f"<h2>Figures</h2><table><tr>{head}</tr>{body}</table>"
