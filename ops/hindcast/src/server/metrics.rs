//! `/metrics`: every name with its kind and its words, and how they are written down.
//!
//! Invariants
//! - A metric that is not in the table is not told; `METRICS.md` lists the table.
//! - No value of a label comes from data of clients: names of retention policies and of masking types are the operator's. Names of tenants
//!   that a limit refused are the one exception, and bounded (`TENANTS_TOLD_MAX`).

use super::cluster::View;
use hindcast_model::{GroupId, SpanNs};
use hindcast_node::disk_guard::DiskState;
use hindcast_node::io::servers::syslog::UDP_QUEUED_BYTES_MAX;
use hindcast_node::io::servers::tenants::{Refused, TENANTS_TOLD_MAX};
use hindcast_node::io::tls::TlsStats;
use hindcast_node::io::writer::QUEUED_BYTES_MAX;
use hindcast_node::shard_machine::ShardHandle;
use hindcast_node::write::BatchSink;
use hindcast_proto::v1;
use hindcast_raft::Meta;
use hindcast_raft::io::TimesSeen;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

/// Name, kind, words.
pub const METRICS: &[(&str, &str, &str)] = &[
    (
        "hindcast_admission_refused_total",
        "counter",
        "Requests that were turned away before they were read, by work and reason.",
    ),
    (
        "hindcast_cluster_time_ahead_seconds",
        "gauge",
        "How far cluster time is ahead of clocks, because one ran ahead and was set back: until clocks have caught up, incidents and tickets bear times ahead, and what waits for a time waits a ninth longer.",
    ),
    (
        "hindcast_cold_cache_bytes",
        "gauge",
        "Bytes of cold files that are held in memory.",
    ),
    (
        "hindcast_cold_cache_hits_total",
        "counter",
        "Blocks of cold files that were in memory when they were asked for.",
    ),
    (
        "hindcast_cold_cache_misses_total",
        "counter",
        "Blocks of cold files that were fetched from the store.",
    ),
    (
        "hindcast_cold_deletes_total",
        "counter",
        "Files that were deleted in the cold store since this node started.",
    ),
    (
        "hindcast_cold_failures_total",
        "counter",
        "Work with the cold store that failed and was to be tried again, since this node started.",
    ),
    (
        "hindcast_cold_upload_bytes_total",
        "counter",
        "Bytes of files that went to the cold store since this node started.",
    ),
    (
        "hindcast_cold_uploads_total",
        "counter",
        "Files that went to the cold store since this node started.",
    ),
    (
        "hindcast_disk_free_bytes",
        "gauge",
        "Bytes left on the disk of the data directory.",
    ),
    (
        "hindcast_disk_refused_parts_total",
        "counter",
        "Parts of batches refused here because the disk was almost full.",
    ),
    (
        "hindcast_disk_reserve_bytes",
        "gauge",
        "Writes are refused when less than this is left.",
    ),
    (
        "hindcast_disk_writes_refused",
        "gauge",
        "Whether writes are refused because the disk is almost full.",
    ),
    (
        "hindcast_ingest_duplicate_batches_total",
        "counter",
        "Batches that were known already.",
    ),
    (
        "hindcast_ingest_exemplars_left_out_total",
        "counter",
        "Exemplars that came with samples and were not kept: too long, at a time that cannot be, or beyond the bounds of one request.",
    ),
    (
        "hindcast_ingest_exemplars_written_total",
        "counter",
        "Exemplars that were stored, as lines.",
    ),
    (
        "hindcast_ingest_failed_requests_total",
        "counter",
        "Write requests that were refused as a whole, by reason.",
    ),
    (
        "hindcast_ingest_lines_total",
        "counter",
        "Lines that were stored, counted where they came in: of logs, spans, exemplars and native histograms.",
    ),
    (
        "hindcast_ingest_metadata_left_out_total",
        "counter",
        "Descriptions of metrics for which there was no room, or whose shard was away; senders say them again.",
    ),
    (
        "hindcast_ingest_metadata_written_total",
        "counter",
        "Descriptions of metrics (type, unit, help) that were written, because they were new or six hours old.",
    ),
    (
        "hindcast_ingest_refused_items_total",
        "counter",
        "Samples and lines that were refused while the rest of their request was stored, by reason.",
    ),
    (
        "hindcast_ingest_requests_total",
        "counter",
        "Write requests that were answered.",
    ),
    (
        "hindcast_ingest_samples_total",
        "counter",
        "Samples that were stored, counted where they came in.",
    ),
    (
        "hindcast_ingest_uncounted_spans_total",
        "counter",
        "Spans that were stored and left out of request metrics, because too many are counted on this node.",
    ),
    (
        "hindcast_kafka_batches_total",
        "counter",
        "Batches of consumed records that were stored, those among them that were stored before.",
    ),
    (
        "hindcast_kafka_bytes_total",
        "counter",
        "Bytes of values of records that were stored.",
    ),
    (
        "hindcast_kafka_commits_total",
        "counter",
        "Offsets that were committed, each with a note of the batch that is under way behind it.",
    ),
    (
        "hindcast_kafka_failures_total",
        "counter",
        "Times that a broker could not be reached or refused something, and was asked again; /api/hindcast/v1/kafka says why.",
    ),
    (
        "hindcast_kafka_fetches_total",
        "counter",
        "Answers of brokers that were asked for records.",
    ),
    (
        "hindcast_kafka_known_batches_total",
        "counter",
        "Batches that were stored before, and came again after a crash or because the group dealt anew.",
    ),
    (
        "hindcast_kafka_lag_records",
        "gauge",
        "Offsets between what is stored and the end of the log, of each partition that this node has; those beyond 1000 are added up.",
    ),
    (
        "hindcast_kafka_lost_offsets_total",
        "counter",
        "Offsets whose records a broker deleted before they were consumed.",
    ),
    ("hindcast_kafka_partitions", "gauge", "Partitions that this node has."),
    (
        "hindcast_kafka_rebalances_total",
        "counter",
        "Times that a group dealt its partitions anew while this node was a member.",
    ),
    (
        "hindcast_kafka_records_total",
        "counter",
        "Consumed records that were stored, or refused in their parts.",
    ),
    (
        "hindcast_kafka_refused_records_total",
        "counter",
        "Records that were passed over, by reason; each is in the log, or one of its kind.",
    ),
    (
        "hindcast_kafka_reload_failures_total",
        "counter",
        "Times that the file of topics was refused at a reload.",
    ),
    (
        "hindcast_kafka_waiting_bytes",
        "gauge",
        "Bytes of records that came and are not stored yet; the bound of a node is 64 MiB.",
    ),
    (
        "hindcast_kafka_write_waits_total",
        "counter",
        "Times that a batch of records had to wait and be written again.",
    ),
    (
        "hindcast_masked_total",
        "counter",
        "Matches of personal data that were hidden in lines where they came in, by type.",
    ),
    (
        "hindcast_masking_bytes_total",
        "counter",
        "Bytes of lines and their metadata that were looked at for personal data.",
    ),
    (
        "hindcast_masking_unsearched_total",
        "counter",
        "Texts whose rest was hidden whole, because a type's pattern read them too often to be searched further, by type.",
    ),
    (
        "hindcast_memory_limit_bytes",
        "gauge",
        "What this process may use (--memory-limit).",
    ),
    (
        "hindcast_memory_pressure",
        "gauge",
        "0: everything is let in; 1: no queries; 2: nor writes; 3: nor parts of writes from other nodes.",
    ),
    (
        "hindcast_memory_used_bytes",
        "gauge",
        "Resident memory of this process, without the program itself.",
    ),
    (
        "hindcast_memory_used_max_bytes",
        "gauge",
        "The most resident memory that was seen since the start.",
    ),
    (
        "hindcast_outbox_oldest_due_seconds",
        "gauge",
        "How long the oldest message is due; 0 when none is.",
    ),
    (
        "hindcast_outbox_sends_total",
        "counter",
        "Attempts of this node to send a message, by outcome.",
    ),
    (
        "hindcast_outbox_waiting",
        "gauge",
        "Messages to people that are not sent yet, as this node sees it; 10,000 stands for more.",
    ),
    ("hindcast_queries_running", "gauge", "Queries that run now."),
    ("hindcast_queries_waiting", "gauge", "Queries that wait for a place."),
    (
        "hindcast_queue_bytes",
        "gauge",
        "Bytes that wait, or are under way, by queue; group or peer tell whose.",
    ),
    ("hindcast_queue_bytes_max", "gauge", "The bound of each queue."),
    (
        "hindcast_queue_dropped_total",
        "counter",
        "Lists of Raft messages for a peer that were dropped because its queue was full; Raft sends again.",
    ),
    ("hindcast_raft_applied_index", "gauge", "Applied entries."),
    ("hindcast_raft_commit_index", "gauge", "Committed entries."),
    (
        "hindcast_raft_durable_index",
        "gauge",
        "Entries whose effect is on disk outside the log.",
    ),
    (
        "hindcast_raft_fsync_seconds",
        "histogram",
        "How long writing a round of the Raft log to disk took, all groups together.",
    ),
    ("hindcast_raft_is_leader", "gauge", "Whether this node leads the group."),
    (
        "hindcast_raft_lag_entries",
        "gauge",
        "Committed entries that another member has not confirmed, told by the group's leader.",
    ),
    (
        "hindcast_raft_learners",
        "gauge",
        "Members of the group that get everything and count for nothing.",
    ),
    (
        "hindcast_raft_log_bytes",
        "gauge",
        "Bytes of entries that the Raft log holds for the group.",
    ),
    (
        "hindcast_raft_quarantined",
        "gauge",
        "Whether this copy of the group takes no part any more: it lost what it had confirmed, or its node ended while the copy was let go or rebuilt. `cluster status` says which; both heal by themselves while the others are a majority.",
    ),
    ("hindcast_raft_term", "gauge", "Raft term."),
    (
        "hindcast_raft_voters",
        "gauge",
        "Members of the group that count, as this node knows.",
    ),
    ("hindcast_ready", "gauge", "Whether every group has a leader here."),
    (
        "hindcast_request_seconds",
        "histogram",
        "How long requests of clients took until their answer began, by work.",
    ),
    (
        "hindcast_requests_total",
        "counter",
        "Requests of clients that were answered, by work and outcome.",
    ),
    (
        "hindcast_retention_dropped_total",
        "counter",
        "What each retention policy let go on this node since it started, about for bytes.",
    ),
    (
        "hindcast_scrape_bodies_bytes",
        "gauge",
        "Bytes of scraped pages that are held until they are stored.",
    ),
    (
        "hindcast_scrape_doubled_samples_total",
        "counter",
        "Samples of scrapes whose series had one at the same time already; the first one stays.",
    ),
    (
        "hindcast_scrape_failed_total",
        "counter",
        "Scrapes that failed; /api/v1/targets says why.",
    ),
    (
        "hindcast_scrape_file_failures_total",
        "counter",
        "Times that a file of targets could not be used; its targets stay as they were.",
    ),
    (
        "hindcast_scrape_forgotten_total",
        "counter",
        "Scrapes whose series get no staleness markers, because too many series are remembered.",
    ),
    (
        "hindcast_scrape_lost_samples_total",
        "counter",
        "Samples of scrapes that are lost, because they could not be stored, also the second time.",
    ),
    (
        "hindcast_scrape_reload_failures_total",
        "counter",
        "Times that a scrape configuration was refused at a reload.",
    ),
    (
        "hindcast_scrape_retries_total",
        "counter",
        "Times that samples of a scrape had to be written again.",
    ),
    (
        "hindcast_scrape_scrapes_total",
        "counter",
        "Scrapes that this node made, polls of devices among them.",
    ),
    (
        "hindcast_scrape_series",
        "gauge",
        "Series that are remembered of the last scrapes.",
    ),
    (
        "hindcast_scrape_sharing_nodes",
        "gauge",
        "Nodes that share the targets that this node knows, this one included.",
    ),
    (
        "hindcast_scrape_skipped_total",
        "counter",
        "Instants at which a target was not scraped, because its last scrape was still under way.",
    ),
    (
        "hindcast_scrape_stale_markers_total",
        "counter",
        "Staleness markers that were written.",
    ),
    (
        "hindcast_scrape_targets",
        "gauge",
        "Targets that this node knows, by state: up, down and unknown are its own, others are other nodes', dropped by relabeling, bad cannot be used.",
    ),
    (
        "hindcast_scrape_under_way",
        "gauge",
        "Scrapes under way; the bound is 512.",
    ),
    (
        "hindcast_scrub_bytes_total",
        "counter",
        "Bytes of files that the background scrub has read and found as they were written.",
    ),
    (
        "hindcast_scrub_findings_total",
        "counter",
        "Damaged places that the background scrub found, or a look at a file in which a read met damage; each is named in the log.",
    ),
    (
        "hindcast_scrub_rounds_total",
        "counter",
        "Rounds of the background scrub over all files that are here.",
    ),
    (
        "hindcast_snmp_poll_questions_total",
        "counter",
        "Questions that devices were asked by SNMP, repeated ones among them.",
    ),
    (
        "hindcast_snmp_poll_retries_total",
        "counter",
        "Questions to devices that were asked again, because no answer came in time.",
    ),
    (
        "hindcast_snmp_poll_unread_values_total",
        "counter",
        "Values that were left out of polls, because they cannot be read or are no numbers; the others of the device are stored.",
    ),
    (
        "hindcast_snmp_polls_failed_total",
        "counter",
        "Polls of devices that failed; /api/v1/targets says why.",
    ),
    (
        "hindcast_snmp_polls_total",
        "counter",
        "Polls of devices that this node made.",
    ),
    (
        "hindcast_snmp_trap_name_failures_total",
        "counter",
        "Times that the host name of a device was not found; traps are taken to come from where it was found before.",
    ),
    (
        "hindcast_snmp_trap_questions_total",
        "counter",
        "Questions of senders of informs for this node's engine or clock, which were answered.",
    ),
    (
        "hindcast_snmp_trap_write_waits_total",
        "counter",
        "Times that a batch of traps had to wait and be written again.",
    ),
    (
        "hindcast_snmp_traps_dropped_total",
        "counter",
        "Traps and informs that are lost, by reason; kernel: dropped before this node saw them; owner_unknown: they may be of a device of another tenant whose name was not found. No such inform is answered.",
    ),
    (
        "hindcast_snmp_traps_refused_total",
        "counter",
        "Datagrams to the trap listeners that were refused, by reason: whoever sent them may not, or not so.",
    ),
    (
        "hindcast_snmp_traps_total",
        "counter",
        "Traps and informs that were taken, by kind.",
    ),
    (
        "hindcast_storage_cold_bytes",
        "gauge",
        "Bytes of segment files that are in the cold store, of hindcast_storage_segment_bytes.",
    ),
    (
        "hindcast_storage_cold_segments",
        "gauge",
        "Segment files that are in the cold store.",
    ),
    (
        "hindcast_storage_damaged_files",
        "gauge",
        "Files of the shard that are here and damaged: what needs them is refused, until the copy is rebuilt from another node.",
    ),
    (
        "hindcast_storage_head_bytes",
        "gauge",
        "Bytes of rows in memory that are in no file yet.",
    ),
    ("hindcast_storage_lines", "gauge", "Log lines held by the shard."),
    (
        "hindcast_storage_repairs_total",
        "counter",
        "Times that damaged files of the shard were replaced: by another node's snapshot, or from a Raft log that held everything.",
    ),
    ("hindcast_storage_samples", "gauge", "Samples held by the shard."),
    ("hindcast_storage_segment_bytes", "gauge", "Bytes of segment files."),
    ("hindcast_storage_segments", "gauge", "Segment files."),
    (
        "hindcast_storage_series",
        "gauge",
        "Series and streams that the shard knows.",
    ),
    (
        "hindcast_storage_window_values",
        "gauge",
        "Values of windows that old samples were rolled up to.",
    ),
    (
        "hindcast_syslog_bytes_total",
        "counter",
        "Bytes of syslog that came, by transport.",
    ),
    (
        "hindcast_syslog_connections",
        "gauge",
        "Connections of syslog senders that are open.",
    ),
    (
        "hindcast_syslog_connections_refused_total",
        "counter",
        "Connections of syslog senders that were closed at once, by reason; TLS says more in hindcast_tls_refused_total.",
    ),
    (
        "hindcast_syslog_connections_total",
        "counter",
        "Connections of syslog senders that were let in.",
    ),
    (
        "hindcast_syslog_dropped_total",
        "counter",
        "Syslog messages that are lost, by transport and reason; kernel: dropped before this node saw them.",
    ),
    (
        "hindcast_syslog_marked_total",
        "counter",
        "Syslog messages that were stored with a mark, because something of them could not be read or kept as it came.",
    ),
    (
        "hindcast_syslog_messages_total",
        "counter",
        "Syslog messages that came, by transport.",
    ),
    (
        "hindcast_syslog_write_waits_total",
        "counter",
        "Times that a batch of syslog had to wait and be written again.",
    ),
    (
        "hindcast_tenant_active_series",
        "gauge",
        "Active series of tenants that have a limit of them and sent new ones of late, as this node's replicas know them; at most 1,000 tenants.",
    ),
    (
        "hindcast_tenant_lines_cut_total",
        "counter",
        "Lines that were cut to the length that their tenant's limit allows (lines_too_long: cut).",
    ),
    (
        "hindcast_tenant_rate_nodes",
        "gauge",
        "Nodes that live, as this one knows: it takes its part of each tenant's rate by their number.",
    ),
    (
        "hindcast_tenant_refused_items_total",
        "counter",
        "Samples and lines that a tenant's limit refused while the rest of their request was stored, by tenant and limit; beyond 1,000 of these together, without a name.",
    ),
    (
        "hindcast_tenant_refused_requests_total",
        "counter",
        "Write requests that came faster than their tenant's limit allows, by tenant and limit; beyond 1,000 of these together, without a name.",
    ),
    (
        "hindcast_tls_certificate_expires_seconds",
        "gauge",
        "When the certificate in use ends, since 1970.",
    ),
    (
        "hindcast_tls_handshakes_total",
        "counter",
        "Connections that were let in with TLS.",
    ),
    (
        "hindcast_tls_refused_total",
        "counter",
        "Connections that were refused or given up in the handshake; side says who came to whom.",
    ),
    (
        "hindcast_tls_reload_failures_total",
        "counter",
        "Times that new certificates could not be used.",
    ),
    (
        "hindcast_tls_reloads_total",
        "counter",
        "Times that new certificates were taken.",
    ),
    (
        "hindcast_writes_waiting",
        "gauge",
        "Write requests that wait at the door, unread, because as many are under way as this node finishes in time.",
    ),
];

/// A page in Prometheus' text format.
#[derive(Default)]
struct Exposition {
    text: String,
    /// The last one that was begun: rows of one metric stand together.
    begun: &'static str,
}

impl Exposition {
    fn begin(&mut self, name: &str) -> bool {
        if self.begun == name {
            return true;
        }
        let Some((name, kind, help)) = METRICS.iter().find(|(n, ..)| *n == name) else {
            debug_assert!(false, "{name} is not in the table");
            return false;
        };
        self.begun = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        true
    }

    fn put(&mut self, name: &str, rows: Vec<(String, f64)>) {
        if !self.begin(name) {
            return;
        }
        for (labels, value) in rows {
            let value = if value == f64::INFINITY {
                "+Inf".to_owned()
            } else {
                value.to_string()
            };
            let _ = writeln!(self.text, "{name}{labels} {value}");
        }
    }

    /// A histogram; `labels` without braces.
    fn put_times(&mut self, name: &str, labels: &str, times: &TimesSeen) {
        if !self.begin(name) {
            return;
        }
        let comma = if labels.is_empty() { "" } else { "," };
        let braced = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        for (bound, count) in &times.buckets {
            let bound = bound.map_or("+Inf".to_owned(), |b| (b.0 as f64 / 1e9).to_string());
            let _ = writeln!(self.text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(self.text, "{name}_sum{braced} {}", times.sum.0 as f64 / 1e9);
        let _ = writeln!(self.text, "{name}_count{braced} {}", times.count);
    }
}

impl View {
    /// `/metrics` in Prometheus' text format.
    pub(super) fn metrics(&self) -> String {
        let mut out = Exposition::default();
        let groups = self.groups();
        let me = self.node.id().0;
        let by_group = |f: &dyn Fn(&v1::GroupStatus) -> f64| {
            groups
                .iter()
                .map(|g| (format!("{{group=\"{}\"}}", g.group), f(g)))
                .collect::<Vec<_>>()
        };
        out.put(
            "hindcast_ready",
            vec![(String::new(), f64::from(u8::from(self.node.is_ready())))],
        );
        let ahead = self.node.meta.ahead_of_clocks().unwrap_or(SpanNs::ZERO);
        let ahead = ahead.0 as f64 / 1e9;
        out.put("hindcast_cluster_time_ahead_seconds", vec![(String::new(), ahead)]);
        out.put("hindcast_raft_term", by_group(&|g| g.term as f64));
        out.put(
            "hindcast_raft_is_leader",
            by_group(&|g| f64::from(u8::from(g.leader == me))),
        );
        out.put("hindcast_raft_commit_index", by_group(&|g| g.commit as f64));
        out.put("hindcast_raft_applied_index", by_group(&|g| g.applied as f64));
        out.put("hindcast_raft_durable_index", by_group(&|g| g.durable as f64));
        let by_id = |f: &dyn Fn(GroupId) -> f64| {
            let row = |g: &v1::GroupStatus| (format!("{{group=\"{}\"}}", g.group), f(GroupId(g.group)));
            groups.iter().map(row).collect::<Vec<_>>()
        };
        out.put(
            "hindcast_raft_log_bytes",
            by_id(&|g| self.node.raft.status(g).log_bytes as f64),
        );
        out.put(
            "hindcast_raft_quarantined",
            by_id(&|g| f64::from(u8::from(self.node.raft.status(g).quarantined.is_some()))),
        );
        out.put("hindcast_raft_voters", by_group(&|g| g.voters.len() as f64));
        out.put("hindcast_raft_learners", by_group(&|g| g.learners.len() as f64));
        let lags = groups.iter().flat_map(|g| {
            let peers = self.node.raft.status(GroupId(g.group)).peers;
            let row = move |p: &hindcast_raft::PeerProgress| {
                (format!("{{group=\"{}\",node=\"{}\"}}", g.group, p.node), p.lag as f64)
            };
            peers.iter().map(row).collect::<Vec<_>>()
        });
        out.put("hindcast_raft_lag_entries", lags.collect());
        out.put_times("hindcast_raft_fsync_seconds", "", &self.node.raft.fsync_times());
        self.put_queues(&mut out);
        self.put_admission(&mut out);
        self.put_outbox(&mut out);
        let scrub = self.maintenance.background();
        for (name, count) in [
            ("hindcast_scrub_bytes_total", &scrub.bytes),
            ("hindcast_scrub_findings_total", &scrub.findings),
            ("hindcast_scrub_rounds_total", &scrub.rounds),
        ] {
            out.put(name, vec![(String::new(), count.load(Relaxed) as f64)]);
        }
        let disk = &self.node.disk;
        let plain = |value: f64| vec![(String::new(), value)];
        out.put("hindcast_disk_free_bytes", plain(disk.free() as f64));
        out.put("hindcast_disk_reserve_bytes", plain(disk.reserve() as f64));
        out.put(
            "hindcast_disk_writes_refused",
            plain(f64::from(u8::from(disk.state() != DiskState::Open))),
        );
        out.put("hindcast_disk_refused_parts_total", plain(disk.refused() as f64));
        let by_shard = |f: &dyn Fn(&hindcast_storage::ShardStats) -> f64| {
            let shards = self.node.shards.iter();
            shards
                .map(|(g, s)| (format!("{{group=\"{g}\"}}"), f(&s.stats())))
                .collect::<Vec<_>>()
        };
        out.put("hindcast_storage_samples", by_shard(&|s| s.samples as f64));
        out.put("hindcast_storage_lines", by_shard(&|s| s.lines as f64));
        out.put("hindcast_storage_window_values", by_shard(&|s| s.window_values as f64));
        let of_copies = |f: &dyn Fn(&ShardHandle) -> f64| {
            let shards = self.node.shards.iter();
            shards.map(|(g, s)| (format!("{{group=\"{g}\"}}"), f(s))).collect()
        };
        out.put(
            "hindcast_storage_damaged_files",
            of_copies(&|s| s.reader.damaged().len() as f64),
        );
        out.put("hindcast_storage_repairs_total", of_copies(&|s| s.repairs() as f64));
        out.put("hindcast_storage_head_bytes", by_shard(&|s| s.head_bytes as f64));
        out.put("hindcast_storage_series", by_shard(&|s| s.series as f64));
        out.put("hindcast_storage_segments", by_shard(&|s| s.segments as f64));
        out.put("hindcast_storage_segment_bytes", by_shard(&|s| s.segment_bytes as f64));
        out.put("hindcast_storage_cold_segments", by_shard(&|s| s.cold_segments as f64));
        out.put("hindcast_storage_cold_bytes", by_shard(&|s| s.cold_bytes as f64));
        out.put("hindcast_cold_uploads_total", by_shard(&|s| s.cold.puts as f64));
        out.put(
            "hindcast_cold_upload_bytes_total",
            by_shard(&|s| s.cold.put_bytes as f64),
        );
        out.put("hindcast_cold_deletes_total", by_shard(&|s| s.cold.deletes as f64));
        out.put("hindcast_cold_failures_total", by_shard(&|s| s.cold.failures as f64));
        if let Some(cold) = &self.node.cold {
            let cache = cold.stats();
            out.put("hindcast_cold_cache_hits_total", plain(cache.hits as f64));
            out.put("hindcast_cold_cache_misses_total", plain(cache.misses as f64));
            out.put("hindcast_cold_cache_bytes", plain(cache.bytes as f64));
        }
        let shards = self.node.shards.iter();
        let dropped = shards.flat_map(|(g, s)| s.dropped().into_iter().map(move |(policy, d)| (*g, policy, d)));
        let rows = dropped.flat_map(|(group, policy, d)| {
            let kinds = [
                ("samples", d.samples),
                ("windows", d.windows),
                ("lines", d.lines),
                ("late_samples", d.late),
                ("bytes", d.bytes),
            ];
            let row = move |(kind, n): (&str, u64)| {
                let labels = format!("{{group=\"{group}\",policy={policy:?},kind=\"{kind}\"}}");
                (labels, n as f64)
            };
            kinds.map(row)
        });
        out.put("hindcast_retention_dropped_total", rows.collect());
        self.put_scraping(&mut out);
        self.put_kafka(&mut out);
        let counts = self.masks.counts();
        let masked = counts.by_type().into_iter();
        let masked = masked.map(|(name, n)| (format!("{{type={name:?}}}"), n as f64));
        out.put("hindcast_masked_total", masked.collect());
        let unsearched = counts.unsearched().into_iter();
        let unsearched = unsearched.map(|(name, n)| (format!("{{type={name:?}}}"), n as f64));
        out.put("hindcast_masking_unsearched_total", unsearched.collect());
        out.put("hindcast_masking_bytes_total", plain(counts.bytes() as f64));
        self.put_tenants(&mut out);
        let ports: Vec<(&str, TlsStats)> = [self.node.peers.tls(), self.tls.as_ref()]
            .into_iter()
            .flatten()
            .map(|t| (t.port().as_str(), t.stats()))
            .collect();
        let by_port = |f: &dyn Fn(&TlsStats) -> Option<f64>| {
            let row = |(port, s): &(&str, TlsStats)| Some((format!("{{port=\"{port}\"}}"), f(s)?));
            ports.iter().filter_map(row).collect::<Vec<_>>()
        };
        out.put("hindcast_tls_handshakes_total", by_port(&|s| Some(s.handshakes as f64)));
        let refused = ports.iter().flat_map(|(port, s)| {
            s.refused.iter().map(move |((side, reason), n)| {
                let labels = format!("{{port=\"{port}\",side=\"{side}\",reason=\"{reason}\"}}");
                (labels, *n as f64)
            })
        });
        out.put("hindcast_tls_refused_total", refused.collect());
        out.put("hindcast_tls_reloads_total", by_port(&|s| Some(s.reloads as f64)));
        out.put(
            "hindcast_tls_reload_failures_total",
            by_port(&|s| Some(s.reload_failures as f64)),
        );
        out.put(
            "hindcast_tls_certificate_expires_seconds",
            by_port(&|s| Some(s.expires?.0 as f64 / 1e9)),
        );
        let mut named = std::collections::BTreeMap::<&str, Vec<(String, f64)>>::new();
        let mut counters = self.counters.list();
        counters.extend(self.syslog.list());
        counters.extend(self.traps.iter().flat_map(|t| t.stats().list()));
        for sample in &counters {
            let pairs: Vec<String> = sample.labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
            let labels = if pairs.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", pairs.join(","))
            };
            named
                .entry(sample.name)
                .or_default()
                .push((labels, sample.value as f64));
        }
        let told = METRICS.iter().map(|(name, ..)| *name);
        let elsewhere = ["hindcast_ingest_", "hindcast_syslog_", "hindcast_snmp_trap"];
        for name in told.filter(|n| elsewhere.iter().any(|of| n.starts_with(of))) {
            named.entry(name).or_default();
        }
        for (name, rows) in named {
            out.put(name, rows);
        }
        out.text
    }

    /// What was refused of tenants under their limits.
    fn put_tenants(&self, out: &mut Exposition) {
        let refused = self.tenants.refused();
        let rows = |of: fn(&Refused) -> u64| {
            let told = refused.iter().filter(|(_, r)| of(r) > 0);
            let row =
                told.map(|((tenant, limit), r)| (format!("{{tenant={tenant:?},limit=\"{limit}\"}}"), of(r) as f64));
            row.collect::<Vec<_>>()
        };
        out.put("hindcast_tenant_refused_items_total", rows(|r| r.items));
        out.put("hindcast_tenant_refused_requests_total", rows(|r| r.requests));
        let active = self
            .tenants
            .series(self.node.writer.ids())
            .into_iter()
            .take(TENANTS_TOLD_MAX);
        let active = active.map(|(tenant, now)| (format!("{{tenant=\"{tenant}\"}}"), now.active as f64));
        out.put("hindcast_tenant_active_series", active.collect());
        let plain = |n: u64| vec![(String::new(), n as f64)];
        out.put("hindcast_tenant_lines_cut_total", plain(self.tenants.lines_cut()));
        out.put("hindcast_tenant_rate_nodes", plain(self.tenants.nodes() as u64));
    }

    /// Every queue of this node that holds bytes, and its bound.
    fn put_queues(&self, out: &mut Exposition) {
        let (mut held, mut bounds) = (vec![], vec![]);
        let mut queue = |labels: String, bytes: usize, bytes_max: usize| {
            held.push((labels.clone(), bytes as f64));
            bounds.push((labels, bytes_max as f64));
        };
        let raft = self.node.raft.queues();
        queue(
            "{queue=\"raft_proposals\"}".to_owned(),
            raft.proposals.0,
            raft.proposals.1,
        );
        queue("{queue=\"raft_received\"}".to_owned(), raft.received.0, raft.received.1);
        queue("{queue=\"raft_log\"}".to_owned(), raft.log.0, raft.log.1);
        for (group, bytes) in raft.backlogs {
            let labels = format!("{{queue=\"raft_apply\",group=\"{group}\"}}");
            queue(labels, bytes, raft.backlog_max);
        }
        for (shard, bytes) in self.node.writer.queued_bytes() {
            let labels = format!("{{queue=\"writes\",group=\"{}\"}}", GroupId::from(shard));
            queue(labels, bytes, QUEUED_BYTES_MAX);
        }
        let mut dropped = vec![];
        for (peer, q) in self.node.peers.queues() {
            let labels = format!("{{queue=\"peer_messages\",peer=\"{peer}\"}}");
            queue(labels, q.bytes, q.bytes_max);
            dropped.push((format!("{{peer=\"{peer}\"}}"), q.dropped as f64));
        }
        let (bytes, bytes_max) = self.node.admission.ingest_bytes();
        queue("{queue=\"ingest_requests\"}".to_owned(), bytes, bytes_max);
        let datagrams = self.syslog.udp_queued_bytes();
        queue(
            "{queue=\"syslog_datagrams\"}".to_owned(),
            datagrams,
            UDP_QUEUED_BYTES_MAX,
        );
        out.put("hindcast_queue_bytes", held);
        out.put("hindcast_queue_bytes_max", bounds);
        out.put("hindcast_queue_dropped_total", dropped);
    }

    fn put_scraping(&self, out: &mut Exposition) {
        let Some(scraper) = &self.scraper else {
            // Named all the same, so that whoever looks for one finds it.
            let own = METRICS.iter().map(|(name, ..)| *name);
            return own
                .filter(|n| n.starts_with("hindcast_scrape_") || n.starts_with("hindcast_snmp_poll"))
                .for_each(|name| out.put(name, vec![]));
        };
        let (of, gauges) = (scraper.stats(), scraper.gauges());
        let mut plain = |name: &str, value: f64| out.put(name, vec![(String::new(), value)]);
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Relaxed) as f64;
        plain("hindcast_scrape_bodies_bytes", gauges.bodies_bytes as f64);
        plain("hindcast_scrape_doubled_samples_total", count(&of.doubled_samples));
        plain("hindcast_scrape_failed_total", count(&of.failed));
        plain("hindcast_scrape_file_failures_total", gauges.file_failures as f64);
        plain("hindcast_scrape_forgotten_total", gauges.forgotten as f64);
        plain("hindcast_scrape_lost_samples_total", count(&of.lost_samples));
        plain("hindcast_scrape_reload_failures_total", count(&of.reload_failures));
        plain("hindcast_scrape_retries_total", count(&of.retried));
        plain("hindcast_scrape_scrapes_total", count(&of.scrapes));
        plain("hindcast_scrape_series", gauges.series as f64);
        plain("hindcast_scrape_sharing_nodes", gauges.sharing as f64);
        plain("hindcast_scrape_skipped_total", gauges.skipped as f64);
        plain("hindcast_scrape_stale_markers_total", count(&of.stale_markers));
        plain("hindcast_scrape_under_way", gauges.under_way as f64);
        plain("hindcast_snmp_poll_questions_total", count(&of.polls.questions));
        plain("hindcast_snmp_poll_retries_total", count(&of.polls.retries));
        plain("hindcast_snmp_poll_unread_values_total", count(&of.polls.unread));
        plain("hindcast_snmp_polls_failed_total", count(&of.polls.failed));
        plain("hindcast_snmp_polls_total", count(&of.polls.polls));
        let own = gauges.up + gauges.down + gauges.unknown;
        let by_state = [
            ("up", gauges.up as f64),
            ("down", gauges.down as f64),
            ("unknown", gauges.unknown as f64),
            ("others", gauges.targets.saturating_sub(own) as f64),
            ("dropped", gauges.dropped_targets as f64),
            ("bad", gauges.bad_targets as f64),
        ];
        let rows = by_state.map(|(state, n)| (format!("{{state=\"{state}\"}}"), n));
        out.put("hindcast_scrape_targets", rows.to_vec());
    }

    fn put_kafka(&self, out: &mut Exposition) {
        let mut named = std::collections::BTreeMap::<&str, Vec<(String, f64)>>::new();
        // Named all the same where nothing is consumed, so that whoever looks for one finds it.
        let own = METRICS.iter().map(|(name, ..)| *name);
        own.filter(|n| n.starts_with("hindcast_kafka_"))
            .for_each(|name| _ = named.insert(name, vec![]));
        for (name, labels, value) in self.kafka.iter().flat_map(|k| k.rows()) {
            named.entry(name).or_default().push((labels, value));
        }
        for (name, rows) in named {
            out.put(name, rows);
        }
    }

    fn put_admission(&self, out: &mut Exposition) {
        let admission = &self.node.admission;
        let memory = admission.memory();
        let plain = |value: f64| vec![(String::new(), value)];
        out.put("hindcast_memory_used_bytes", plain(memory.used() as f64));
        out.put("hindcast_memory_used_max_bytes", plain(memory.used_max() as f64));
        let limit = memory.limit();
        let limit = if limit == u64::MAX { f64::INFINITY } else { limit as f64 };
        out.put("hindcast_memory_limit_bytes", plain(limit));
        out.put("hindcast_memory_pressure", plain(f64::from(memory.pressure() as u8)));
        let refused = admission.refused().into_iter().map(|(work, reason, n)| {
            let labels = format!("{{work=\"{work}\",reason=\"{reason}\"}}");
            (labels, n as f64)
        });
        out.put("hindcast_admission_refused_total", refused.collect());
        let (running, waiting) = admission.queries();
        out.put("hindcast_queries_running", plain(running as f64));
        out.put("hindcast_queries_waiting", plain(waiting as f64));
        out.put("hindcast_writes_waiting", plain(admission.writes_waiting() as f64));
        let counts = self.requests.counts().into_iter().map(|(work, outcome, n)| {
            let labels = format!("{{work=\"{work}\",outcome=\"{outcome}\"}}");
            (labels, n as f64)
        });
        out.put("hindcast_requests_total", counts.collect());
        for (work, times) in self.requests.times() {
            out.put_times("hindcast_request_seconds", &format!("work=\"{work}\""), &times);
        }
    }

    fn put_outbox(&self, out: &mut Exposition) {
        let now = self.node.meta.cluster_now();
        let waiting = hindcast_alerting::rows::outbox_waiting(self.node.meta.stale().as_ref());
        let oldest = waiting.oldest_due.map_or(0.0, |due| now.since(due).0 as f64 / 1e9);
        out.put(
            "hindcast_outbox_waiting",
            vec![(String::new(), waiting.messages as f64)],
        );
        out.put("hindcast_outbox_oldest_due_seconds", vec![(String::new(), oldest)]);
        let sends = self.sends.list().into_iter();
        let rows = sends.map(|(outcome, n)| (format!("{{outcome=\"{outcome}\"}}"), n as f64));
        out.put("hindcast_outbox_sends_total", rows.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = include_str!("../../METRICS.md");

    #[test]
    fn the_document_lists_what_is_told() {
        let rows = METRICS
            .iter()
            .map(|(name, kind, help)| format!("| `{name}` | {kind} | {help} |"));
        let listed: Vec<&str> = DOC.lines().filter(|l| l.starts_with("| `hindcast_")).collect();
        assert_eq!(rows.collect::<Vec<_>>(), listed);
    }

    #[test]
    fn names_say_their_unit_and_kind() {
        for (name, kind, help) in METRICS {
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
        }
        assert!(METRICS.is_sorted_by_key(|(n, ..)| *n));
    }

    #[test]
    fn a_histogram_ends_with_all_of_it() {
        let times = hindcast_raft::io::Times::default();
        for ms in [1, 1, 30, 90_000] {
            times.add(hindcast_model::SpanNs::from_ms(ms));
        }
        let mut out = Exposition::default();
        out.put_times("hindcast_raft_fsync_seconds", "", &times.seen());
        let lines: Vec<&str> = out.text.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(
            lines.contains(&"hindcast_raft_fsync_seconds_bucket{le=\"0.001\"} 2"),
            "{lines:?}"
        );
        assert!(
            lines.contains(&"hindcast_raft_fsync_seconds_bucket{le=\"0.05\"} 3"),
            "{lines:?}"
        );
        assert!(
            lines.contains(&"hindcast_raft_fsync_seconds_bucket{le=\"+Inf\"} 4"),
            "{lines:?}"
        );
        assert_eq!(
            &lines[lines.len() - 2..],
            [
                "hindcast_raft_fsync_seconds_sum 90.032",
                "hindcast_raft_fsync_seconds_count 4"
            ]
        );
    }
}
