"""Methods, tasks and models, tuned equally, run anywhere, and asked their claims."""
