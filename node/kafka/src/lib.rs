//! Kafka without sockets: what is asked of brokers, what their answers say, which member of a group has which partition, and what is
//! stored and committed next.
//!
//! Begin at [`lane`]: which records of a partition become one batch, and what is noted with its offset so that the same batch is made
//! again by whoever goes on. [`records`] reads what brokers keep, [`messages`] speaks with them, [`group`] deals partitions out,
//! [`config`] is what an operator may say, [`scram`] proves who we are.
//!
//! Promises
//! - No bytes of a broker panic, and none makes memory grow beyond a named bound: counts are checked against what is there.
//! - A batch is the same set of offsets whoever makes it: [`lane::Note`].
//! - Secrets are never shown.

pub mod config;
#[doc(hidden)]
pub mod fuzz;
pub mod group;
pub mod lane;
pub mod messages;
pub mod records;
pub mod scram;
pub mod wire;

pub use config::{KafkaConfig, Source, Topic};
