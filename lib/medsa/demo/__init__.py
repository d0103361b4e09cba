"""What `make demo` and the tests stand on: an Orthanc of our own and studies made from what packages ship."""
