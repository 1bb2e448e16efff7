//! Queries from outside: scripts, HTTP as Grafana speaks it, shards that are asked for parts, what was rolled up.

mod evaluation;
mod grafana;
mod http;
mod logql;
mod natives;
mod pushdown;
mod real;
mod rolled;
mod scripts;
