"""Files and hub datasets as examples, with their columns, labels, groups and held-out rows."""
