"""corom's exporter: turns a torch checkpoint into a bundle proven equal to it."""
