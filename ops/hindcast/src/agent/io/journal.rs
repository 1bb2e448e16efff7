//! Follows the systemd journal through `journalctl`.

use crate::agent::journal::{JournalEntry, parse};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

/// Entries read and not yet batched; beyond it `journalctl` waits.
pub const JOURNAL_ENTRIES_MAX: usize = 10_000;
const RESTART_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);

/// Sends entries until the receiver is dropped. Without `journalctl` it says so once and ends.
pub async fn follow(entries: mpsc::Sender<JournalEntry>) {
    loop {
        let child = Command::new("journalctl")
            .args(["--follow", "--output=json", "--lines=0", "--no-pager", "--quiet"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) => {
                tracing::warn!(error = %e, "cannot run journalctl; the journal is not followed");
                return;
            }
        };
        let Some(stdout) = child.stdout.take() else { return };
        let mut lines = BufReader::new(stdout).lines();
        loop {
            tokio::select! {
                () = entries.closed() => return,
                line = lines.next_line() => match line {
                    Ok(Some(line)) => {
                        let Some(entry) = parse(&line) else { continue };
                        if entries.send(entry).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
            }
        }
        tracing::warn!("journalctl ended; starting it again in {RESTART_PAUSE:?}");
        tokio::select! {
            () = entries.closed() => return,
            () = tokio::time::sleep(RESTART_PAUSE) => {}
        }
    }
}
