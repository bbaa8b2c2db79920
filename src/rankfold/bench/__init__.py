"""Many runs: suites, executors, statistics, claims, estimates, and the choice of a method within a budget."""
