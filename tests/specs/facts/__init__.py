"""Numbers that the papers print, rebuilt without weights."""
