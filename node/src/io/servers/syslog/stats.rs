//! What the syslog listeners took, marked and lost.

use crate::io::servers::IngestSample;
use hindcast_ingest::syslog::Tally;
use hindcast_ingest::syslog::listen::Transport;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Why messages are lost, or connections refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// More came by UDP than could be stored meanwhile.
    QueueFull,
    /// From somebody who may not send here.
    Source,
    /// Not stored when the node stopped.
    Shutdown,
    /// Refused by the store, which says why in the log.
    Refused,
    /// A connection beyond the bound. No message of it was read.
    Connections,
}

const LOST: [(Lost, &str); 5] = [
    (Lost::QueueFull, "queue_full"),
    (Lost::Source, "source"),
    (Lost::Shutdown, "shutdown"),
    (Lost::Refused, "refused"),
    (Lost::Connections, "connections"),
];
const TRANSPORTS: usize = Transport::ALL.len();

#[derive(Default)]
struct OfTransport {
    messages: AtomicU64,
    bytes: AtomicU64,
    dropped: [AtomicU64; LOST.len()],
    connections: AtomicU64,
    connections_open: AtomicUsize,
    refused: [AtomicU64; LOST.len()],
}

/// Counts since the node started.
#[derive(Default)]
pub struct SyslogStats {
    by_transport: [OfTransport; TRANSPORTS],
    marks: [AtomicU64; Tally::MARKS.len()],
    waits: AtomicU64,
    /// Of datagrams that wait.
    pub(super) udp_bytes: AtomicUsize,
    /// Where syslog is taken.
    pub(super) listened: Mutex<Vec<(Transport, SocketAddr)>>,
}

/// An open connection.
pub(super) struct Open(Arc<SyslogStats>, Transport);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.of(self.1).connections_open.fetch_sub(1, Relaxed);
    }
}

impl SyslogStats {
    const fn of(&self, transport: Transport) -> &OfTransport {
        &self.by_transport[transport as usize]
    }

    pub(super) fn came(&self, transport: Transport, messages: usize, bytes: usize) {
        let of = self.of(transport);
        of.messages.fetch_add(messages as u64, Relaxed);
        of.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn dropped(&self, transport: Transport, why: Lost, messages: u64) {
        self.of(transport).dropped[why as usize].fetch_add(messages, Relaxed);
    }

    pub(super) fn connected(self: &Arc<Self>, transport: Transport) -> Open {
        let of = self.of(transport);
        of.connections.fetch_add(1, Relaxed);
        of.connections_open.fetch_add(1, Relaxed);
        Open(self.clone(), transport)
    }

    pub(super) fn refused(&self, transport: Transport, why: Lost) {
        self.of(transport).refused[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn marked(&self, tally: &Tally) {
        for (count, (_, n)) in self.marks.iter().zip(tally.list()) {
            count.fetch_add(n, Relaxed);
        }
    }

    pub(super) fn waited(&self) {
        self.waits.fetch_add(1, Relaxed);
    }

    /// Bytes of datagrams that wait to be stored.
    pub fn udp_queued_bytes(&self) -> usize {
        self.udp_bytes.load(Relaxed)
    }

    /// Every counter of the transports that are listened on, in a fixed order.
    pub fn list(&self) -> Vec<IngestSample> {
        let listened = self.listened.lock().clone();
        let mut list = vec![];
        let mut add = |name, labels: &[(&'static str, &'static str)], value: u64| {
            let labels = labels.to_vec();
            list.push(IngestSample { name, labels, value });
        };
        for transport in Transport::ALL
            .into_iter()
            .filter(|t| listened.iter().any(|(l, _)| l == t))
        {
            let (of, by) = (self.of(transport), ("transport", transport.as_str()));
            add("hindcast_syslog_messages_total", &[by], of.messages.load(Relaxed));
            add("hindcast_syslog_bytes_total", &[by], of.bytes.load(Relaxed));
            for ((_, reason), n) in LOST.iter().zip(&of.dropped) {
                add(
                    "hindcast_syslog_dropped_total",
                    &[by, ("reason", reason)],
                    n.load(Relaxed),
                );
            }
            if transport == Transport::Udp {
                let ports: Vec<u16> = listened
                    .iter()
                    .filter(|(t, _)| *t == transport)
                    .map(|(_, a)| a.port())
                    .collect();
                let dropped = kernel_dropped(&ports);
                add("hindcast_syslog_dropped_total", &[by, ("reason", "kernel")], dropped);
                continue;
            }
            add(
                "hindcast_syslog_connections",
                &[by],
                of.connections_open.load(Relaxed) as u64,
            );
            add("hindcast_syslog_connections_total", &[by], of.connections.load(Relaxed));
            for (why, reason) in LOST
                .iter()
                .filter(|(w, _)| matches!(w, Lost::Source | Lost::Connections))
            {
                let n = of.refused[*why as usize].load(Relaxed);
                add(
                    "hindcast_syslog_connections_refused_total",
                    &[by, ("reason", reason)],
                    n,
                );
            }
        }
        if !listened.is_empty() {
            for (mark, n) in Tally::MARKS.iter().zip(&self.marks) {
                add("hindcast_syslog_marked_total", &[("mark", mark)], n.load(Relaxed));
            }
            add("hindcast_syslog_write_waits_total", &[], self.waits.load(Relaxed));
        }
        list
    }
}

/// Where the kernel says what it dropped because nobody took it in time.
const KERNEL_TABLES: [&str; 2] = ["/proc/net/udp", "/proc/net/udp6"];

/// Datagrams to these ports that the kernel dropped.
pub(in crate::io::servers) fn kernel_dropped(ports: &[u16]) -> u64 {
    KERNEL_TABLES.iter().map(|t| kernel_drops(&read_table(t), ports)).sum()
}

/// Where there is none, nothing is known of it.
fn read_table(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The last column of the rows whose second one ends with one of the ports.
fn kernel_drops(table: &str, ports: &[u16]) -> u64 {
    let of_row = |row: &str| {
        let port = row.split_whitespace().nth(1)?.rsplit(':').next()?;
        let is_ours = ports.contains(&u16::from_str_radix(port, 16).ok()?);
        is_ours
            .then(|| row.split_whitespace().last()?.parse::<u64>().ok())
            .flatten()
    };
    table.lines().skip(1).filter_map(of_row).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_marks_stand_at_their_places() {
        for (i, (why, _)) in LOST.iter().enumerate() {
            assert_eq!(*why as usize, i);
        }
        assert_eq!(Tally::default().list().map(|(mark, _)| mark), Tally::MARKS);
        for (i, transport) in Transport::ALL.into_iter().enumerate() {
            assert_eq!(transport as usize, i);
        }
        assert!(SyslogStats::default().list().is_empty());
    }

    #[test]
    fn what_the_kernel_dropped_is_its_last_column() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  1046: 0100007F:158A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 21 2 0000000000000000 17
  1047: 0100007F:158B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 22 2 0000000000000000 4
";
        assert_eq!(kernel_drops(table, &[5514]), 17);
        assert_eq!(kernel_drops(table, &[5514, 5515]), 21);
        assert_eq!(kernel_drops("", &[5514]), 0);
    }
}
