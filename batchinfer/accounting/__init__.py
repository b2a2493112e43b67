"""What a run took: meter readings and records go in, device-seconds, dollars and the report come out."""
