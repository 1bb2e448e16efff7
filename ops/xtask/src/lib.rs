//! Chores: tidy, prove
