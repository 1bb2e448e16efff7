//! `hindcast rules check`.

use super::{Done, Failure};
use hindcast_alerting::rule;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindcast rules check rules.yml\n  hindcast rules check rules/*.yml")]
pub struct RulesArgs {
    #[command(subcommand)]
    action: RulesAction,
}

#[derive(Debug, clap::Subcommand)]
enum RulesAction {
    /// Says what is wrong with a rule file, or that nothing is.
    #[command(after_help = "Examples:\n  hindcast rules check rules.yml\n  hindcast rules check rules/*.yml")]
    Check {
        /// Rule files, as `hindcast server --rules` takes them.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[allow(clippy::unused_async, reason = "one shape for all commands")]
pub async fn run(args: RulesArgs) -> Done {
    let RulesAction::Check { files } = args.action;
    let mut broken = 0;
    for path in files {
        let shown = path.display().to_string();
        #[allow(
            clippy::disallowed_methods,
            reason = "files that a person names are read where they are"
        )]
        let bytes = std::fs::read(&path).map_err(|e| Failure::usage(format!("{shown} cannot be read: {e}")))?;
        let text = String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{shown} is not UTF-8 text")))?;
        match rule::parse(&shown, &text) {
            Ok(file) => {
                let rules: usize = file.groups.iter().map(|g| g.rules.len()).sum();
                let verdict = if file.warnings.is_empty() {
                    "all good"
                } else {
                    "with warnings"
                };
                println!("{shown}: {} groups, {rules} rules, {verdict}", file.groups.len());
                for warning in &file.warnings {
                    println!("  {warning}");
                }
            }
            Err(e) => {
                broken += 1;
                println!("{e}");
            }
        }
    }
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
