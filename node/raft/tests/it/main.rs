//! Raft from outside: a driver by itself, a cluster of them, the log on a disk, the meta machine.

mod cluster;
mod common;
mod driver;
mod log;
mod members;
mod meta;
