"""What a run is: plan, execute, stitch, publish; the only place that sees all parts."""
