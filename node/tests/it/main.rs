//! A node from outside: cold files in a store, a disk that fills, limits of tenants.

mod cold;
mod disk_full;
mod limits;
