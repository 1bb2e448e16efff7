//! `hindcast limits check`.

use super::{Done, Failure, Output};
use crate::server::limits::{all_json, limits_line, load};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindcast limits check limits.yml\n  hindcast limits check limits.yml -o json")]
pub struct LimitsArgs {
    #[command(subcommand)]
    action: LimitsAction,
}

#[derive(Debug, clap::Subcommand)]
enum LimitsAction {
    /// Shows what a file of limits comes to for each tenant; asks nobody.
    Check {
        /// The file of limits.
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

pub fn run(args: LimitsArgs) -> Done {
    let LimitsAction::Check { file, output } = args.action;
    let limits = load(Some(&file)).map_err(Failure::no)?;
    match output {
        Output::Json => println!("{}", all_json(&limits)),
        Output::Table => {
            println!("default: {}", limits_line(&limits.default));
            for (tenant, of) in &limits.tenants {
                println!("{tenant}: {}", limits_line(of));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
