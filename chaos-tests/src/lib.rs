//! Simulated cluster, checkers, tests on real processes
