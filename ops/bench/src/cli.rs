//! The command line.

use crate::body::Protocol;
use hindcast_model::SpanNs;

#[derive(Debug, clap::Parser)]
#[command(
    name = "hindcast-bench",
    version,
    about = "Pushes a made-up fleet's samples, and times queries"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Pushes samples and counts what is confirmed.
    Ingest(IngestArgs),
    /// Times PromQL queries over HTTP.
    Query(QueryArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

/// One writer keeps one batch on its way. Writers share the endpoints in turn.
#[derive(Clone, Debug, clap::Args)]
pub struct IngestArgs {
    /// Client addresses, separated by commas.
    #[arg(
        long,
        env = "HINDCAST_ENDPOINT",
        default_value = "http://127.0.0.1:7400",
        value_delimiter = ','
    )]
    pub endpoint: Vec<String>,
    #[arg(long, value_enum, default_value = "grpc")]
    pub protocol: Protocol,
    /// Over gRPC: name each series once per stream, then send only values.
    #[arg(long)]
    pub interned: bool,
    #[arg(long, env = "HINDCAST_TENANT", default_value = "default")]
    pub tenant: String,
    #[arg(long, default_value_t = 4)]
    pub writers: usize,
    #[arg(long, default_value_t = 100)]
    pub hosts: usize,
    #[arg(long, default_value_t = 500)]
    pub series_per_host: usize,
    /// Hosts in one request.
    #[arg(long, default_value_t = 5)]
    pub batch_hosts: usize,
    /// Begin no request after so many seconds.
    #[arg(long, default_value_t = 20, conflicts_with = "samples")]
    pub seconds: u64,
    /// Begin requests until they hold so many samples, however long it takes.
    #[arg(long)]
    pub samples: Option<u64>,
    /// Between two samples of a series. They are pushed as fast as the server takes them.
    #[arg(long, default_value = "15s", value_parser = span)]
    pub interval: SpanNs,
    /// How far in the past the first sweep lies. The run ends early when its times reach the present.
    #[arg(long, default_value = "24h", value_parser = span)]
    pub back: SpanNs,
    /// Another seed is another fleet: other hosts, other values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A server process of this machine, whose processor time and memory are read. May be given more than once.
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

impl IngestArgs {
    /// What cannot be run, in the words of the command line.
    /// How bodies are written and sent.
    pub fn wire(&self) -> Protocol {
        if self.interned {
            Protocol::GrpcInterned
        } else {
            self.protocol
        }
    }

    pub fn check(&self) -> Result<(), String> {
        if self.interned && self.protocol != Protocol::Grpc {
            return Err("--interned is a form of --protocol grpc".to_owned());
        }
        for (name, value) in [
            ("writers", self.writers),
            ("hosts", self.hosts),
            ("series-per-host", self.series_per_host),
            ("batch-hosts", self.batch_hosts),
        ] {
            if value == 0 {
                return Err(format!("--{name} is 0"));
            }
        }
        let batches = self.hosts.div_ceil(self.batch_hosts);
        if batches < self.writers {
            return Err(format!(
                "{} hosts by {} make {batches} batches, too few for {} writers: each batch belongs to one writer",
                self.hosts, self.batch_hosts, self.writers
            ));
        }
        if self.interval.as_ms() == 0 {
            return Err("--interval is less than a millisecond".to_owned());
        }
        Ok(())
    }
}

#[derive(Clone, Debug, clap::Args)]
pub struct QueryArgs {
    #[arg(long, env = "HINDCAST_ENDPOINT", default_value = "http://127.0.0.1:7400")]
    pub endpoint: String,
    #[arg(long, env = "HINDCAST_TENANT", default_value = "default")]
    pub tenant: String,
    /// PromQL. May be given more than once.
    #[arg(long, required = true)]
    pub expr: Vec<String>,
    /// Timed runs, after one that is reported by itself.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=RUNS_MAX))]
    pub runs: u32,
    /// Unix seconds of the instant, or of the range's end; else now.
    #[arg(long, allow_negative_numbers = true)]
    pub at: Option<f64>,
    /// A range query over so long.
    #[arg(long, value_parser = span)]
    pub range: Option<SpanNs>,
    /// The range query's step.
    #[arg(long, default_value = "15s", value_parser = span)]
    pub step: SpanNs,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

pub const RUNS_MAX: i64 = 100_000;

fn span(text: &str) -> Result<SpanNs, String> {
    SpanNs::parse(text).ok_or_else(|| "not a span of time like 15s or 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn ingest(line: &str) -> IngestArgs {
        match Cli::parse_from(["hindcast-bench", "ingest"].into_iter().chain(line.split_whitespace())).command {
            Command::Ingest(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let args = ingest("--endpoint http://a:1,http://b:2 --pid 7 --pid 8,9 --protocol remote-write");
        assert_eq!(args.endpoint, ["http://a:1", "http://b:2"]);
        assert_eq!(args.pid, [7, 8, 9]);
        assert_eq!(args.check(), Ok(()));
    }

    #[test]
    fn writers_without_work_are_refused() {
        assert!(ingest("--hosts 10 --batch-hosts 5 --writers 3").check().is_err());
        assert!(ingest("--hosts 11 --batch-hosts 5 --writers 3").check().is_ok());
        assert!(ingest("--series-per-host 0").check().is_err());
    }
}
