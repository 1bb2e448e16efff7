//! Load generator and comparisons against peers
