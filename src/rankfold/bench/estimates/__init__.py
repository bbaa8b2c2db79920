"""Numbers, operations, memory and hours, counted on the meta device, without weights."""
