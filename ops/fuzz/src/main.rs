//! `hindcast-fuzz`: the mutation loop over all targets, on stable, with bounds for time and memory per input.

use anyhow::{Context, ensure};
use clap::Parser;
use hindcast_env::SeededRng;
use hindcast_env::fuzz::{Budget, Report, hunt};
use hindcast_env::io::SystemClock;
use hindcast_model::SpanNs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// No decoder may make the process grow by more over its inputs of at most 64 KiB.
const GROWTH_BYTES_MAX: u64 = 1 << 30;

#[derive(Parser)]
#[command(
    about = "Runs every decoder on damaged bytes: nothing may panic, hang, or take memory without a bound",
    after_help = "Examples:
  hindcast-fuzz
  hindcast-fuzz --seconds 60 --seed 3 storage-
      a minute for each target whose name begins like this
  hindcast-fuzz --replay fuzz-findings/raft-log-0123456789abcdef raft-log"
)]
struct Args {
    /// Targets whose names begin with one of these; all when none is given.
    targets: Vec<String>,
    /// Time for each target.
    #[arg(long, env = "HINDCAST_FUZZ_SECONDS", default_value_t = 5)]
    seconds: u64,
    #[arg(long, env = "HINDCAST_SEED", default_value_t = 1)]
    seed: u64,
    /// Where inputs that were found are kept.
    #[arg(long, default_value = "fuzz-findings")]
    keep: PathBuf,
    /// Runs one kept input instead.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Writes the seeds into a folder for each target, as a corpus for cargo-fuzz.
    #[arg(long)]
    write_seeds: Option<PathBuf>,
    /// Names the targets.
    #[arg(long)]
    list: bool,
}

/// Most memory this process ever had.
fn peak_bytes() -> Option<u64> {
    let status = procfs::process::Process::myself().ok()?.status().ok()?;
    Some(status.vmhwm? * 1024)
}

#[allow(clippy::disallowed_methods, reason = "findings are files for a person")]
fn keep(dir: &Path, name: &str, input: &[u8]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{name}-{}", &blake3::hash(input).to_hex()[..16]));
    std::fs::write(&path, input)?;
    Ok(path)
}

fn tell(name: &str, report: &Report, dir: &Path) -> anyhow::Result<()> {
    println!(
        "{name:<26} {:>9} inputs, slowest {:>9}, {} findings",
        report.inputs,
        format!("{:.1} ms", report.slowest.0 as f64 / 1e6),
        report.found
    );
    for finding in &report.findings {
        let path = keep(dir, name, &finding.input)?;
        println!("    {} ({})", finding.what, path.display());
    }
    Ok(())
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let wanted = |name: &str| args.targets.is_empty() || args.targets.iter().any(|t| name.starts_with(t.as_str()));
    let chosen: Vec<_> = hindcast_fuzz::targets().filter(|t| wanted(t.name)).collect();
    ensure!(!chosen.is_empty(), "no target has such a name; --list names them");
    if args.list {
        chosen.iter().for_each(|t| println!("{}", t.name));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &args.replay {
        #[allow(clippy::disallowed_methods, reason = "an input that was kept")]
        let input = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        chosen.iter().for_each(|t| hindcast_fuzz::run(t.name, &input));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(dir) = &args.write_seeds {
        for target in chosen {
            for seed in (target.seeds)()
                .into_iter()
                .chain(hindcast_fuzz::corpus_of(target.name)?)
            {
                keep(&dir.join(target.name), "seed", &seed)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    // A panic is a finding, told once with its input; not a trace each time.
    std::panic::set_hook(Box::new(|_| {}));
    let clock = SystemClock::new();
    let (mut inputs, mut found) = (0, 0);
    for (n, target) in (0..).zip(&chosen) {
        let before = peak_bytes().unwrap_or(0);
        let watch = || {
            let grown = peak_bytes()?.saturating_sub(before);
            (grown > GROWTH_BYTES_MAX).then(|| format!("memory grew by {} MiB", grown >> 20))
        };
        let budget = Budget {
            span: SpanNs::from_secs(args.seconds),
            inputs: u64::MAX,
        };
        let report = hunt(
            target,
            &hindcast_fuzz::corpus_of(target.name)?,
            &mut SeededRng::new(args.seed.wrapping_add(n)),
            &clock,
            budget,
            watch,
        );
        tell(target.name, &report, &args.keep)?;
        inputs += report.inputs;
        found += report.found;
    }
    println!("{} targets, {inputs} inputs, {found} findings", chosen.len());
    Ok(if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
