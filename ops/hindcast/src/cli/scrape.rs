//! `hindcast scrape check`.

use super::{Done, Failure, Output};
use crate::server::scrape::answer;
use hindcast_model::NodeId;
use hindcast_node::io::servers::scrape::{AllFound, Files, load};
use hindcast_scrape::pool::Told;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hindcast scrape check prometheus.yml\n  hindcast scrape check prometheus.yml -o json"
)]
pub struct ScrapeArgs {
    #[command(subcommand)]
    action: ScrapeAction,
}

#[derive(Debug, clap::Subcommand)]
enum ScrapeAction {
    /// Shows what a configuration would scrape, with labels; asks nobody.
    Check {
        /// The file that Prometheus would read.
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[allow(clippy::unused_async, reason = "one shape for all commands")]
pub async fn run(args: ScrapeArgs) -> Done {
    let ScrapeAction::Check { file, output } = args.action;
    let loaded = load(&file).map_err(|e| Failure::no(e.to_string()))?;
    let mut files = Files::default();
    files.look(&loaded.jobs, true);
    let AllFound { targets, not_scraped } = files.find(&loaded.jobs);
    let told = targets.into_iter().map(|target| Told {
        target,
        last: None,
        node: NodeId(0),
    });
    let told: Vec<_> = told.collect();
    let bad: u64 = not_scraped.values().map(|n| n.bad_count).sum();
    match output {
        Output::Json => {
            let mut shown = answer(&told, &not_scraped);
            for target in shown["activeTargets"].as_array_mut().into_iter().flatten() {
                // Nothing was asked, so nothing is known of these.
                if let Some(target) = target.as_object_mut() {
                    target.retain(|key, _| {
                        !["lastError", "lastScrape", "lastScrapeDuration", "health", "node"].contains(&&**key)
                    });
                }
            }
            shown["warnings"] = loaded.config.warnings.clone().into();
            println!("{shown}");
        }
        Output::Table => {
            for warning in &loaded.config.warnings {
                println!("note: {warning}");
            }
            for job in &loaded.jobs {
                let not = &not_scraped[&job.name];
                let own = || told.iter().filter(|t| t.target.job.name == job.name);
                println!(
                    "{}: {} targets, {} dropped, {} that cannot be used",
                    job.name,
                    own().count(),
                    not.dropped_count,
                    not.bad_count
                );
                for t in own() {
                    println!("  {} {} every {}", t.target.url, t.target.labels, t.target.interval);
                    if let Some(why) = &t.target.refused {
                        println!("    will fail: {why}");
                    }
                }
                not.bad.iter().for_each(|why| println!("  cannot be used: {why}"));
            }
        }
    }
    Ok(match bad == 0 && files.failures == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}
