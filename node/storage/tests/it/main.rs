//! A shard from outside: against a naive model, through crashes, with damaged files, with files of earlier releases.

mod cold;
mod crash;
mod damage;
mod golden;
mod model;
mod naive;
mod reads;
mod scrub;
mod threads;
mod tiers;
