//! Reads `/proc` and `statvfs`.

use crate::agent::Identity;
use crate::agent::reading::{Filesystem, Mount, Texts, mounts};
use std::fs;
use std::path::Path;

/// Processes looked at in one reading.
pub const PROCESSES_MAX: usize = 32_768;

/// This host, or the name it shall go by.
pub fn identity(name: Option<String>) -> Identity {
    let read = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    Identity {
        host_name: name
            .or_else(|| read("/proc/sys/kernel/hostname"))
            .unwrap_or_else(|| "localhost".to_owned()),
        os_type: std::env::consts::OS.to_owned(),
    }
}

/// Changes with every boot, so that a writer's sequence never meets an older one's.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "unknown".to_owned(), |t| t.trim().to_owned())
}

/// Blocks: call it off the runtime's threads.
pub fn texts() -> Texts {
    let read = |name: &str| fs::read_to_string(Path::new("/proc").join(name)).ok();
    let found = read("self/mountinfo").and_then(|t| mounts(&t)).unwrap_or_default();
    Texts {
        stat: read("stat"),
        loadavg: read("loadavg"),
        meminfo: read("meminfo"),
        vmstat: read("vmstat"),
        diskstats: read("diskstats"),
        net_dev: read("net/dev"),
        uptime: read("uptime"),
        processes: processes(),
        filesystems: found.into_iter().filter_map(space).collect(),
        ticks_per_second: procfs::ticks_per_second(),
        page_bytes: procfs::page_size(),
    }
}

fn processes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return vec![];
    };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // A process may end between the listing and the reading: that one is left out.
    pids.take(PROCESSES_MAX)
        .filter_map(|pid| fs::read(format!("/proc/{pid}/stat")).ok())
        .map(|stat| String::from_utf8_lossy(&stat).into_owned())
        .collect()
}

fn space(mount: Mount) -> Option<Filesystem> {
    let s = rustix::fs::statvfs(&mount.mountpoint).ok()?;
    if s.f_blocks == 0 {
        return None;
    }
    let bytes = |blocks: u64| blocks.saturating_mul(s.f_frsize);
    Some(Filesystem {
        mount,
        limit: bytes(s.f_blocks),
        used: bytes(s.f_blocks.saturating_sub(s.f_bfree)),
        free: bytes(s.f_bavail),
        reserved: bytes(s.f_bfree.saturating_sub(s.f_bavail)),
    })
}
