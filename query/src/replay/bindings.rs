//! Which series a signal is read from: the signal table as data, by revision.
//!
//! A signal has an ordered list of entries. For each resource the first entry with a value at any instant of the window
//! wins, for all its objects, and the frame records which one. OpenTelemetry names come before exporters' names.
//! Expressions see the virtual label `__owner__` (the hex id of the resource that owns a series); the labels of
//! `Entry::object` stay beside it and, joined by `/`, name the object.
//!
//! Units are base units: seconds, bytes, ratio 0 to 1, per second, or a count.
//! A revision never changes once released: an old replay keeps its old bindings. The order of entries is part of it.
//!
//! Counters are read over two minutes: long enough for sources that report once a minute.

use hindcast_model::{Domain, Kind};
use std::sync::LazyLock;

/// The newest revision.
pub const REVISION: u32 = 2;

/// One signal: what it is called, whose it is, where it may be found.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    pub name: &'static str,
    pub domain: Domain,
    pub unit: Unit,
    /// Kinds of the resources that own its series.
    pub kinds: &'static [Kind],
    pub entries: &'static [Entry],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Count,
    Ratio,
    Seconds,
    Bytes,
    PerSecond,
    BytesPerSecond,
    Celsius,
    /// 1 up, 0 down.
    Bool,
}

/// One place where a signal may be found.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub source: Source,
    pub expr: &'static str,
    /// Labels that name the object; empty: the signal is of the resource as a whole.
    pub object: &'static [&'static str],
}

/// Whose names an entry uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Otel,
    Prometheus,
}

/// The signals of a revision, by name.
pub fn table(revision: u32) -> Option<&'static [Signal]> {
    match revision {
        1 => Some(REVISION_1),
        2 => Some(&REVISION_2),
        _ => None,
    }
}

/// The domain of a signal by its name; hypervisors are a sub-domain of servers.
pub fn domain_of(name: &str) -> Option<Domain> {
    match name.split('.').next()? {
        "sms" | "vms" => Some(Domain::Sms),
        "dbms" => Some(Domain::Dbms),
        "apm" => Some(Domain::Apm),
        "nms" => Some(Domain::Nms),
        _ => None,
    }
}

const fn otel(expr: &'static str) -> Entry {
    otel_by(&[], expr)
}
const fn otel_by(object: &'static [&'static str], expr: &'static str) -> Entry {
    Entry {
        source: Source::Otel,
        expr,
        object,
    }
}
const fn prom(expr: &'static str) -> Entry {
    prom_by(&[], expr)
}
const fn prom_by(object: &'static [&'static str], expr: &'static str) -> Entry {
    Entry {
        source: Source::Prometheus,
        expr,
        object,
    }
}

const HOST: &[Kind] = &[Kind::Host];
const CONTAINER: &[Kind] = &[Kind::Container];
const HYPERVISOR: &[Kind] = &[Kind::Hypervisor];
const DATABASE: &[Kind] = &[Kind::Database];
/// Statements are measured by the database, or by the services that call it.
const STATEMENT: &[Kind] = &[Kind::Database, Kind::Instance, Kind::Service];
const SERVICE: &[Kind] = &[Kind::Instance, Kind::Service];
/// OTel's hardware conventions name an interface as a device of its own.
const INTERFACE: &[Kind] = &[Kind::Interface, Kind::Device];
const DEVICE: &[Kind] = &[Kind::Device];
/// A probe's series belong to its target, which is known by job and instance.
const PROBED: &[Kind] = &[Kind::Instance, Kind::Device, Kind::Host];

macro_rules! signals {
    ($($name:literal $domain:ident $unit:ident $kinds:ident [$($entry:expr),+ $(,)?])+) => {
        &[$(Signal {
            name: $name,
            domain: Domain::$domain,
            unit: Unit::$unit,
            kinds: $kinds,
            entries: &[$($entry),+],
        }),+]
    };
}

/// The share of processor time in one mode; `$otel` and `$prom` name it.
macro_rules! cpu_mode {
    ($otel:literal, $prom:literal) => {
        [
            otel(concat!(
                r#"sum by (__owner__) (rate(system_cpu_time_seconds_total{cpu_mode=""#,
                $otel,
                r#""}[2m])) / (sum by (__owner__) (rate(system_cpu_time_seconds_total{cpu_mode!=""}[2m])) > 0)"#
            )),
            otel(concat!(
                r#"sum by (__owner__) (rate(system_cpu_time_seconds_total{state=""#,
                $prom,
                r#""}[2m])) / (sum by (__owner__) (rate(system_cpu_time_seconds_total{state!=""}[2m])) > 0)"#
            )),
            prom(concat!(
                r#"sum by (__owner__) (rate(node_cpu_seconds_total{mode=""#,
                $prom,
                r#""}[2m])) / (sum by (__owner__) (rate(node_cpu_seconds_total[2m])) > 0)"#
            )),
        ]
    };
}

/// Bytes per second of a counter that splits by direction; the direction's label differs by source.
macro_rules! direction {
    ($metric:literal, $by:literal, $label:literal, $value:literal) => {
        concat!(
            "sum by (__owner__, ",
            $by,
            ") (rate(",
            $metric,
            "{",
            $label,
            "=\"",
            $value,
            "\"}[2m]))"
        )
    };
}

/// A quantile of the server's request duration.
macro_rules! quantile {
    ($q:literal) => {
        concat!(
            "histogram_quantile(",
            $q,
            ", sum by (__owner__, le) (rate(http_server_request_duration_seconds_bucket[2m])))"
        )
    };
}

/// Two counters of one object, added per second.
macro_rules! both {
    ($by:literal, $a:literal, $b:literal) => {
        concat!(
            "sum by (",
            $by,
            ") (rate(",
            $a,
            "[2m])) + sum by (",
            $by,
            ") (rate(",
            $b,
            "[2m]))"
        )
    };
}

const REVISION_1: &[Signal] = signals! {
    // Services, per service and instance.
    "apm.dep.errors" Apm PerSecond SERVICE [
        otel_by(&["server_address"], r#"sum by (__owner__, server_address) (rate(http_client_request_duration_seconds_count{error_type!=""}[2m])) or sum by (__owner__, server_address) (rate(db_client_operation_duration_seconds_count{error_type!=""}[2m]))"#),
    ]
    "apm.dep.latency" Apm Seconds SERVICE [
        otel_by(&["server_address"], "sum by (__owner__, server_address) (rate(http_client_request_duration_seconds_sum[2m])) / (sum by (__owner__, server_address) (rate(http_client_request_duration_seconds_count[2m])) > 0) or sum by (__owner__, server_address) (rate(db_client_operation_duration_seconds_sum[2m])) / (sum by (__owner__, server_address) (rate(db_client_operation_duration_seconds_count[2m])) > 0)"),
    ]
    "apm.finalizer.pending" Apm Count SERVICE [
        prom("max by (__owner__) (jvm_memory_objects_pending_finalization)"),
    ]
    "apm.gc.time" Apm Ratio SERVICE [
        otel("sum by (__owner__) (rate(jvm_gc_duration_seconds_sum[2m]))"),
        prom("sum by (__owner__) (rate(jvm_gc_collection_seconds_sum[2m]))"),
    ]
    "apm.heap.after_gc" Apm Bytes SERVICE [
        otel_by(&["jvm_memory_pool_name"], r#"sum by (__owner__, jvm_memory_pool_name) (jvm_memory_used_after_last_gc_bytes{jvm_memory_type="heap"})"#),
        prom_by(&["pool"], "sum by (__owner__, pool) (jvm_memory_pool_collection_used_bytes)"),
    ]
    "apm.heap.limit" Apm Bytes SERVICE [
        otel_by(&["jvm_memory_pool_name"], r#"sum by (__owner__, jvm_memory_pool_name) (jvm_memory_limit_bytes{jvm_memory_type="heap"})"#),
        prom_by(&["pool"], "sum by (__owner__, pool) (jvm_memory_pool_max_bytes)"),
    ]
    "apm.heap.used" Apm Bytes SERVICE [
        otel_by(&["jvm_memory_pool_name"], r#"sum by (__owner__, jvm_memory_pool_name) (jvm_memory_used_bytes{jvm_memory_type="heap"})"#),
        prom_by(&["pool"], "sum by (__owner__, pool) (jvm_memory_pool_used_bytes)"),
    ]
    "apm.pool.used" Apm Count SERVICE [
        otel_by(&["db_client_connection_pool_name"], r#"sum by (__owner__, db_client_connection_pool_name) (db_client_connection_count{db_client_connection_state="used"})"#),
    ]
    "apm.pool.wait" Apm Seconds SERVICE [
        otel_by(&["db_client_connection_pool_name"], "sum by (__owner__, db_client_connection_pool_name) (rate(db_client_connection_wait_time_seconds_sum[2m])) / (sum by (__owner__, db_client_connection_pool_name) (rate(db_client_connection_wait_time_seconds_count[2m])) > 0)"),
    ]
    "apm.pool.waiting" Apm Count SERVICE [
        otel_by(&["db_client_connection_pool_name"], "sum by (__owner__, db_client_connection_pool_name) (db_client_connection_pending_requests)"),
    ]
    "apm.req.active" Apm Count SERVICE [
        otel("sum by (__owner__) (http_server_active_requests)"),
    ]
    "apm.req.errors" Apm PerSecond SERVICE [
        otel(r#"sum by (__owner__) (rate(http_server_request_duration_seconds_count{error_type!=""}[2m]))"#),
        otel(r#"sum by (__owner__) (rate(http_server_request_duration_seconds_count{http_response_status_code=~"5.."}[2m]))"#),
    ]
    "apm.req.p50" Apm Seconds SERVICE [otel(quantile!("0.5"))]
    "apm.req.p95" Apm Seconds SERVICE [otel(quantile!("0.95"))]
    "apm.req.p99" Apm Seconds SERVICE [otel(quantile!("0.99"))]
    "apm.req.rate" Apm PerSecond SERVICE [
        otel("sum by (__owner__) (rate(http_server_request_duration_seconds_count[2m]))"),
    ]
    "apm.threads" Apm Count SERVICE [
        otel_by(&["jvm_thread_state"], "sum by (__owner__, jvm_thread_state) (jvm_thread_count)"),
        prom_by(&["state"], "sum by (__owner__, state) (jvm_threads_state)"),
    ]
    // A probe over HTTP tells itself by its status code, one over ICMP by its phases.
    "apm.url.time" Apm Seconds PROBED [
        prom("max by (__owner__) (probe_duration_seconds and on (__owner__) probe_http_status_code)"),
    ]
    "apm.url.up" Apm Bool PROBED [
        prom("max by (__owner__) (probe_success and on (__owner__) probe_http_status_code)"),
    ]

    // Databases.
    "dbms.cache.hit" Dbms Ratio DATABASE [
        otel("sum by (__owner__) (rate(postgresql_blks_hit_total[2m])) / (sum by (__owner__) (rate(postgresql_blks_hit_total[2m])) + sum by (__owner__) (rate(postgresql_blks_read_total[2m])) > 0)"),
        prom("sum by (__owner__) (rate(pg_stat_database_blks_hit[2m])) / (sum by (__owner__) (rate(pg_stat_database_blks_hit[2m])) + sum by (__owner__) (rate(pg_stat_database_blks_read[2m])) > 0)"),
    ]
    "dbms.conn.max" Dbms Count DATABASE [
        otel("max by (__owner__) (postgresql_connection_max)"),
        prom("max by (__owner__) (pg_settings_max_connections)"),
    ]
    "dbms.conn.used" Dbms Count DATABASE [
        otel("sum by (__owner__) (postgresql_backends)"),
        prom("sum by (__owner__) (pg_stat_database_numbackends)"),
    ]
    "dbms.deadlock" Dbms PerSecond DATABASE [
        otel("sum by (__owner__) (rate(postgresql_deadlocks_total[2m]))"),
        prom("sum by (__owner__) (rate(pg_stat_database_deadlocks[2m]))"),
    ]
    "dbms.lock.count" Dbms Count DATABASE [
        otel("sum by (__owner__) (postgresql_database_locks)"),
        prom("sum by (__owner__) (pg_locks_count)"),
    ]
    // Lag has two measures: how long, and how much is still to come.
    "dbms.repl.lag" Dbms Seconds DATABASE [
        otel("max by (__owner__) (postgresql_wal_lag_seconds)"),
    ]
    "dbms.repl.lag_bytes" Dbms Bytes DATABASE [
        otel("max by (__owner__) (postgresql_replication_data_delay_bytes)"),
        prom("max by (__owner__) (pg_stat_replication_pg_wal_lsn_diff)"),
    ]
    "dbms.rows.dead" Dbms Count DATABASE [
        otel(r#"sum by (__owner__) (postgresql_rows{state="dead"})"#),
        prom("sum by (__owner__) (pg_stat_user_tables_n_dead_tup)"),
    ]
    "dbms.size" Dbms Bytes DATABASE [
        otel("sum by (__owner__) (postgresql_db_size_bytes)"),
        prom("sum by (__owner__) (pg_database_size_bytes)"),
    ]
    "dbms.stmt.calls" Dbms PerSecond STATEMENT [
        otel_by(&["db_query_summary"], r#"topk by (__owner__) (10, sum by (__owner__, db_query_summary) (rate(db_client_operation_duration_seconds_count{db_query_summary!=""}[2m])))"#),
        prom_by(&["queryid"], "topk by (__owner__) (10, sum by (__owner__, queryid) (rate(pg_stat_statements_calls_total[2m])))"),
    ]
    // Seconds spent in a statement, per second.
    "dbms.stmt.time" Dbms Ratio STATEMENT [
        otel_by(&["db_query_summary"], r#"topk by (__owner__) (10, sum by (__owner__, db_query_summary) (rate(db_client_operation_duration_seconds_sum{db_query_summary!=""}[2m])))"#),
        prom_by(&["queryid"], "topk by (__owner__) (10, sum by (__owner__, queryid) (rate(pg_stat_statements_seconds_total[2m])))"),
    ]
    "dbms.tx.commit" Dbms PerSecond DATABASE [
        otel("sum by (__owner__) (rate(postgresql_commits_total[2m]))"),
        prom("sum by (__owner__) (rate(pg_stat_database_xact_commit[2m]))"),
    ]
    "dbms.tx.longest" Dbms Seconds DATABASE [
        prom("max by (__owner__) (pg_stat_activity_max_tx_duration)"),
    ]
    "dbms.tx.rollback" Dbms PerSecond DATABASE [
        otel("sum by (__owner__) (rate(postgresql_rollbacks_total[2m]))"),
        prom("sum by (__owner__) (rate(pg_stat_database_xact_rollback[2m]))"),
    ]
    "dbms.up" Dbms Bool DATABASE [
        otel("max by (__owner__) (up)"),
        prom("max by (__owner__) (pg_up)"),
    ]

    // Network, per device and interface.
    "nms.dev.cpu" Nms Ratio DEVICE [
        prom("avg by (__owner__) (cpmCPUTotal5minRev) / 100"),
        prom("avg by (__owner__) (hrProcessorLoad) / 100"),
    ]
    "nms.dev.mem" Nms Ratio DEVICE [
        prom("sum by (__owner__) (ciscoMemoryPoolUsed) / (sum by (__owner__) (ciscoMemoryPoolUsed) + sum by (__owner__) (ciscoMemoryPoolFree) > 0)"),
        prom_by(&["hrStorageIndex"], "max by (__owner__, hrStorageIndex) (hrStorageUsed) / (max by (__owner__, hrStorageIndex) (hrStorageSize) > 0)"),
    ]
    "nms.dev.uptime" Nms Seconds DEVICE [
        otel("max by (__owner__) (system_uptime_seconds)"),
        // Hundredths of a second.
        prom("max by (__owner__) (sysUpTime) / 100"),
    ]
    "nms.if.discards" Nms PerSecond INTERFACE [
        prom(both!("__owner__", "ifInDiscards", "ifOutDiscards")),
    ]
    "nms.if.errors" Nms PerSecond INTERFACE [
        otel(r#"sum by (__owner__) (rate(hw_errors_total{hw_type="network"}[2m]))"#),
        prom(both!("__owner__", "ifInErrors", "ifOutErrors")),
    ]
    "nms.if.in" Nms BytesPerSecond INTERFACE [
        otel(r#"sum by (__owner__) (rate(hw_network_io_bytes_total{network_io_direction="receive"}[2m]))"#),
        prom("sum by (__owner__) (rate(ifHCInOctets[2m]))"),
    ]
    "nms.if.out" Nms BytesPerSecond INTERFACE [
        otel(r#"sum by (__owner__) (rate(hw_network_io_bytes_total{network_io_direction="transmit"}[2m]))"#),
        prom("sum by (__owner__) (rate(ifHCOutOctets[2m]))"),
    ]
    // Counts only while the interface is meant to be up.
    "nms.if.up" Nms Bool INTERFACE [
        otel("max by (__owner__) (hw_network_up)"),
        prom("(max by (__owner__) (ifOperStatus) == bool 1) and (max by (__owner__) (ifAdminStatus) == 1)"),
    ]
    // The busier direction. ifHighSpeed is in Mbit/s.
    "nms.if.util" Nms Ratio INTERFACE [
        otel("max by (__owner__) (hw_network_bandwidth_utilization_ratio)"),
        prom("((sum by (__owner__) (rate(ifHCInOctets[2m])) > sum by (__owner__) (rate(ifHCOutOctets[2m]))) or sum by (__owner__) (rate(ifHCOutOctets[2m]))) * 8 / (max by (__owner__) (ifHighSpeed) * 1000000 > 0)"),
    ]
    "nms.reach" Nms Bool PROBED [
        prom("max by (__owner__) (probe_success and on (__owner__) probe_icmp_duration_seconds)"),
    ]
    "nms.rtt" Nms Seconds PROBED [
        prom("max by (__owner__) (probe_duration_seconds and on (__owner__) probe_icmp_duration_seconds)"),
    ]

    // Servers.
    "sms.cpu.busy" Sms Ratio HOST [
        otel(r#"1 - sum by (__owner__) (rate(system_cpu_time_seconds_total{cpu_mode="idle"}[2m])) / (sum by (__owner__) (rate(system_cpu_time_seconds_total{cpu_mode!=""}[2m])) > 0)"#),
        otel(r#"1 - sum by (__owner__) (rate(system_cpu_time_seconds_total{state="idle"}[2m])) / (sum by (__owner__) (rate(system_cpu_time_seconds_total{state!=""}[2m])) > 0)"#),
        prom(r#"1 - sum by (__owner__) (rate(node_cpu_seconds_total{mode="idle"}[2m])) / (sum by (__owner__) (rate(node_cpu_seconds_total[2m])) > 0)"#),
    ]
    "sms.cpu.iowait" Sms Ratio HOST [CPU_IOWAIT[0], CPU_IOWAIT[1], CPU_IOWAIT[2]]
    "sms.cpu.steal" Sms Ratio HOST [CPU_STEAL[0], CPU_STEAL[1], CPU_STEAL[2]]
    "sms.cpu.system" Sms Ratio HOST [CPU_SYSTEM[0], CPU_SYSTEM[1], CPU_SYSTEM[2]]
    "sms.cpu.user" Sms Ratio HOST [CPU_USER[0], CPU_USER[1], CPU_USER[2]]
    // In processors.
    "sms.ctr.cpu" Sms Ratio CONTAINER [
        otel("sum by (__owner__) (rate(container_cpu_time_seconds_total[2m]))"),
        prom("sum by (__owner__) (rate(container_cpu_usage_seconds_total[2m]))"),
    ]
    // OpenTelemetry's translated name is also cAdvisor's.
    "sms.ctr.mem" Sms Bytes CONTAINER [
        otel("sum by (__owner__) (container_memory_working_set_bytes)"),
    ]
    "sms.ctr.net" Sms BytesPerSecond CONTAINER [
        otel("sum by (__owner__) (rate(container_network_io_bytes_total[2m]))"),
        prom(both!("__owner__", "container_network_receive_bytes_total", "container_network_transmit_bytes_total")),
    ]
    "sms.ctr.up" Sms Bool CONTAINER [
        otel("max by (__owner__) (container_uptime_seconds) > bool 0"),
    ]
    "sms.disk.busy" Sms Ratio HOST [
        otel_by(&["system_device"], r#"sum by (__owner__, system_device) (rate(system_disk_io_time_seconds_total{system_device!=""}[2m]))"#),
        otel_by(&["device"], r#"sum by (__owner__, device) (rate(system_disk_io_time_seconds_total{device!=""}[2m]))"#),
        prom_by(&["device"], "sum by (__owner__, device) (rate(node_disk_io_time_seconds_total[2m]))"),
    ]
    "sms.disk.read" Sms BytesPerSecond HOST [
        otel_by(&["system_device"], direction!("system_disk_io_bytes_total", "system_device", "disk_io_direction", "read")),
        otel_by(&["device"], direction!("system_disk_io_bytes_total", "device", "direction", "read")),
        prom_by(&["device"], "sum by (__owner__, device) (rate(node_disk_read_bytes_total[2m]))"),
    ]
    "sms.disk.wait" Sms Seconds HOST [
        otel_by(&["system_device"], r#"sum by (__owner__, system_device) (rate(system_disk_operation_time_seconds_total{system_device!=""}[2m])) / (sum by (__owner__, system_device) (rate(system_disk_operations_total{system_device!=""}[2m])) > 0)"#),
        otel_by(&["device"], r#"sum by (__owner__, device) (rate(system_disk_operation_time_seconds_total{device!=""}[2m])) / (sum by (__owner__, device) (rate(system_disk_operations_total{device!=""}[2m])) > 0)"#),
        prom_by(&["device"], "(sum by (__owner__, device) (rate(node_disk_read_time_seconds_total[2m])) + sum by (__owner__, device) (rate(node_disk_write_time_seconds_total[2m]))) / (sum by (__owner__, device) (rate(node_disk_reads_completed_total[2m])) + sum by (__owner__, device) (rate(node_disk_writes_completed_total[2m])) > 0)"),
    ]
    "sms.disk.write" Sms BytesPerSecond HOST [
        otel_by(&["system_device"], direction!("system_disk_io_bytes_total", "system_device", "disk_io_direction", "write")),
        otel_by(&["device"], direction!("system_disk_io_bytes_total", "device", "direction", "write")),
        prom_by(&["device"], "sum by (__owner__, device) (rate(node_disk_written_bytes_total[2m]))"),
    ]
    "sms.fs.used" Sms Ratio HOST [
        otel_by(&["system_filesystem_mountpoint"], r#"sum by (__owner__, system_filesystem_mountpoint) (system_filesystem_usage_bytes{system_filesystem_state="used"}) / (sum by (__owner__, system_filesystem_mountpoint) (system_filesystem_limit_bytes) > 0)"#),
        otel_by(&["system_filesystem_mountpoint"], r#"sum by (__owner__, system_filesystem_mountpoint) (system_filesystem_usage_bytes{system_filesystem_state="used"}) / (sum by (__owner__, system_filesystem_mountpoint) (system_filesystem_usage_bytes) > 0)"#),
        otel_by(&["mountpoint"], r#"sum by (__owner__, mountpoint) (system_filesystem_usage_bytes{state="used"}) / (sum by (__owner__, mountpoint) (system_filesystem_usage_bytes) > 0)"#),
        prom_by(&["mountpoint"], "1 - max by (__owner__, mountpoint) (node_filesystem_avail_bytes) / (max by (__owner__, mountpoint) (node_filesystem_size_bytes) > 0)"),
    ]
    "sms.gpu.busy" Sms Ratio HOST [
        otel_by(&["hw_id"], "max by (__owner__, hw_id) (hw_gpu_utilization_ratio)"),
    ]
    "sms.gpu.mem" Sms Ratio HOST [
        otel_by(&["hw_id"], "max by (__owner__, hw_id) (hw_gpu_memory_utilization_ratio)"),
    ]
    "sms.load.15m" Sms Count HOST [
        otel("max by (__owner__) (system_cpu_load_average_15m)"),
        prom("max by (__owner__) (node_load15)"),
    ]
    "sms.load.1m" Sms Count HOST [
        otel("max by (__owner__) (system_cpu_load_average_1m)"),
        prom("max by (__owner__) (node_load1)"),
    ]
    "sms.load.5m" Sms Count HOST [
        otel("max by (__owner__) (system_cpu_load_average_5m)"),
        prom("max by (__owner__) (node_load5)"),
    ]
    "sms.mem.buffers" Sms Bytes HOST [
        otel(r#"sum by (__owner__) (system_memory_usage_bytes{system_memory_state="buffers"})"#),
        otel(r#"sum by (__owner__) (system_memory_usage_bytes{state="buffered"})"#),
        prom("max by (__owner__) (node_memory_Buffers_bytes)"),
    ]
    "sms.mem.cached" Sms Bytes HOST [
        otel(r#"sum by (__owner__) (system_memory_usage_bytes{system_memory_state="cached"})"#),
        otel(r#"sum by (__owner__) (system_memory_usage_bytes{state="cached"})"#),
        prom("max by (__owner__) (node_memory_Cached_bytes)"),
    ]
    "sms.mem.used" Sms Ratio HOST [
        otel("1 - max by (__owner__) (system_memory_linux_available_bytes) / (max by (__owner__) (system_memory_limit_bytes) > 0)"),
        otel(r#"sum by (__owner__) (system_memory_usage_bytes{system_memory_state="used"}) / (sum by (__owner__) (system_memory_usage_bytes{system_memory_state!=""}) > 0)"#),
        otel(r#"sum by (__owner__) (system_memory_usage_bytes{state="used"}) / (sum by (__owner__) (system_memory_usage_bytes{state!=""}) > 0)"#),
        prom("1 - max by (__owner__) (node_memory_MemAvailable_bytes) / (max by (__owner__) (node_memory_MemTotal_bytes) > 0)"),
    ]
    "sms.net.collisions" Sms PerSecond HOST [
        prom_by(&["device"], "sum by (__owner__, device) (rate(node_network_transmit_colls_total[2m]))"),
    ]
    "sms.net.drops" Sms PerSecond HOST [
        otel_by(&["network_interface_name"], "sum by (__owner__, network_interface_name) (rate(system_network_packet_dropped_total[2m]))"),
        otel_by(&["device"], "sum by (__owner__, device) (rate(system_network_dropped_total[2m]))"),
        prom_by(&["device"], both!("__owner__, device", "node_network_receive_drop_total", "node_network_transmit_drop_total")),
    ]
    "sms.net.errors" Sms PerSecond HOST [
        otel_by(&["network_interface_name"], r#"sum by (__owner__, network_interface_name) (rate(system_network_errors_total{network_interface_name!=""}[2m]))"#),
        otel_by(&["device"], r#"sum by (__owner__, device) (rate(system_network_errors_total{device!=""}[2m]))"#),
        prom_by(&["device"], both!("__owner__, device", "node_network_receive_errs_total", "node_network_transmit_errs_total")),
    ]
    "sms.net.in" Sms BytesPerSecond HOST [
        otel_by(&["network_interface_name"], direction!("system_network_io_bytes_total", "network_interface_name", "network_io_direction", "receive")),
        otel_by(&["device"], direction!("system_network_io_bytes_total", "device", "direction", "receive")),
        prom_by(&["device"], "sum by (__owner__, device) (rate(node_network_receive_bytes_total[2m]))"),
    ]
    "sms.net.out" Sms BytesPerSecond HOST [
        otel_by(&["network_interface_name"], direction!("system_network_io_bytes_total", "network_interface_name", "network_io_direction", "transmit")),
        otel_by(&["device"], direction!("system_network_io_bytes_total", "device", "direction", "transmit")),
        prom_by(&["device"], "sum by (__owner__, device) (rate(node_network_transmit_bytes_total[2m]))"),
    ]
    "sms.proc.count" Sms Count HOST [
        otel_by(&["process_state"], r#"sum by (__owner__, process_state) (system_process_count{process_state!=""})"#),
        otel_by(&["system_process_status"], r#"sum by (__owner__, system_process_status) (system_process_count{system_process_status!=""})"#),
        otel_by(&["status"], "sum by (__owner__, status) (system_processes_count)"),
    ]
    // In processors.
    "sms.proc.cpu" Sms Ratio HOST [
        otel_by(&["process_executable_name"], "sum by (__owner__, process_executable_name) (rate(process_cpu_time_seconds_total[2m]))"),
    ]
    "sms.proc.mem" Sms Bytes HOST [
        otel_by(&["process_executable_name"], "sum by (__owner__, process_executable_name) (process_memory_usage_bytes)"),
    ]
    "sms.proc.up" Sms Bool HOST [
        otel_by(&["process_executable_name"], "max by (__owner__, process_executable_name) (process_uptime_seconds) > bool 0"),
    ]
    "sms.run.blocked" Sms Count HOST [prom("max by (__owner__) (node_procs_blocked)")]
    "sms.run.queue" Sms Count HOST [prom("max by (__owner__) (node_procs_running)")]
    // Pages per second.
    "sms.swap.io" Sms PerSecond HOST [
        otel("sum by (__owner__) (rate(system_paging_operations_total[2m]))"),
        prom(both!("__owner__", "node_vmstat_pswpin", "node_vmstat_pswpout")),
    ]
    "sms.swap.used" Sms Ratio HOST [
        otel(r#"max by (__owner__) (system_paging_utilization_ratio{system_paging_state="used"})"#),
        otel(r#"max by (__owner__) (system_paging_utilization_ratio{state="used"})"#),
        prom("1 - max by (__owner__) (node_memory_SwapFree_bytes) / (max by (__owner__) (node_memory_SwapTotal_bytes) > 0)"),
    ]
    "sms.temp" Sms Celsius HOST [
        otel_by(&["hw_id"], "max by (__owner__, hw_id) (hw_temperature_celsius)"),
        prom_by(&["chip", "sensor"], "max by (__owner__, chip, sensor) (node_hwmon_temp_celsius)"),
    ]

    // Hypervisors.
    "vms.ds.used" Sms Ratio HYPERVISOR [
        otel_by(&["vcenter_datastore_name"], "max by (__owner__, vcenter_datastore_name) (vcenter_datastore_disk_utilization_percent) / 100"),
    ]
    "vms.host.cpu" Sms Ratio HYPERVISOR [
        otel("max by (__owner__) (vcenter_host_cpu_utilization_percent) / 100"),
    ]
    "vms.host.disk.latency" Sms Seconds HYPERVISOR [
        otel("max by (__owner__) (vcenter_host_disk_latency_avg_milliseconds) / 1000"),
    ]
    "vms.host.mem" Sms Ratio HYPERVISOR [
        otel("max by (__owner__) (vcenter_host_memory_utilization_percent) / 100"),
    ]
};

/// A quantile of the server's request duration: of native histograms, and of what is counted by spans.
macro_rules! quantiles {
    ($q:literal) => {
        &[
            otel(concat!(
                "histogram_quantile(",
                $q,
                ", sum by (__owner__) (rate(http_server_request_duration_seconds[2m])))"
            )),
            otel(concat!(
                "histogram_quantile(",
                $q,
                r#", sum by (__owner__, le) (rate(traces_span_metrics_duration_seconds_bucket{span_kind="SPAN_KIND_SERVER"}[2m])))"#
            )),
        ]
    };
}

/// Behind the entries of revision 1: native histograms, what nodes count by spans, and devices that nodes poll themselves.
const ADDED_IN_2: &[(&str, &[Entry])] = &[
    (
        "apm.dep.errors",
        &[otel_by(
            &["server_address"],
            r#"histogram_count(sum by (__owner__, server_address) (rate(http_client_request_duration_seconds{error_type!=""}[2m]))) or histogram_count(sum by (__owner__, server_address) (rate(db_client_operation_duration_seconds{error_type!=""}[2m])))"#,
        )],
    ),
    (
        "apm.dep.latency",
        &[otel_by(
            &["server_address"],
            "histogram_avg(sum by (__owner__, server_address) (rate(http_client_request_duration_seconds[2m]))) or histogram_avg(sum by (__owner__, server_address) (rate(db_client_operation_duration_seconds[2m])))",
        )],
    ),
    (
        "apm.gc.time",
        &[otel(
            "histogram_sum(sum by (__owner__) (rate(jvm_gc_duration_seconds[2m])))",
        )],
    ),
    (
        "apm.pool.wait",
        &[otel_by(
            &["db_client_connection_pool_name"],
            "histogram_avg(sum by (__owner__, db_client_connection_pool_name) (rate(db_client_connection_wait_time_seconds[2m])))",
        )],
    ),
    (
        "apm.req.errors",
        &[
            otel(
                r#"histogram_count(sum by (__owner__) (rate(http_server_request_duration_seconds{error_type!=""}[2m])))"#,
            ),
            otel(
                r#"histogram_count(sum by (__owner__) (rate(http_server_request_duration_seconds{http_response_status_code=~"5.."}[2m])))"#,
            ),
            otel(
                r#"sum by (__owner__) (rate(traces_span_metrics_calls_total{span_kind="SPAN_KIND_SERVER",status_code="STATUS_CODE_ERROR"}[2m]))"#,
            ),
        ],
    ),
    ("apm.req.p50", quantiles!("0.5")),
    ("apm.req.p95", quantiles!("0.95")),
    ("apm.req.p99", quantiles!("0.99")),
    (
        "apm.req.rate",
        &[
            otel("histogram_count(sum by (__owner__) (rate(http_server_request_duration_seconds[2m])))"),
            otel(r#"sum by (__owner__) (rate(traces_span_metrics_calls_total{span_kind="SPAN_KIND_SERVER"}[2m]))"#),
        ],
    ),
    (
        "dbms.stmt.calls",
        &[otel_by(
            &["db_query_summary"],
            r#"topk by (__owner__) (10, histogram_count(sum by (__owner__, db_query_summary) (rate(db_client_operation_duration_seconds{db_query_summary!=""}[2m]))))"#,
        )],
    ),
    (
        "dbms.stmt.time",
        &[otel_by(
            &["db_query_summary"],
            r#"topk by (__owner__) (10, histogram_sum(sum by (__owner__, db_query_summary) (rate(db_client_operation_duration_seconds{db_query_summary!=""}[2m]))))"#,
        )],
    ),
    ("nms.reach", &[prom("max by (__owner__) (snmp_up)")]),
];

static REVISION_2: LazyLock<Vec<Signal>> = LazyLock::new(|| {
    let added = |name: &str| ADDED_IN_2.iter().find(|(n, _)| *n == name).map(|(_, entries)| *entries);
    let with = |signal: &Signal| match added(signal.name) {
        None => *signal,
        // Once in a process, for as long as it lives.
        Some(entries) => Signal {
            entries: [signal.entries, entries].concat().leak(),
            ..*signal
        },
    };
    REVISION_1.iter().map(with).collect()
});

const CPU_IOWAIT: [Entry; 3] = cpu_mode!("iowait", "iowait");
const CPU_STEAL: [Entry; 3] = cpu_mode!("steal", "steal");
const CPU_SYSTEM: [Entry; 3] = cpu_mode!("system", "system");
const CPU_USER: [Entry; 3] = cpu_mode!("user", "user");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_entry_is_a_query_that_keeps_the_owner_and_the_object() {
        for signal in table(REVISION).unwrap() {
            for entry in signal.entries {
                let parsed = hindcast_promql::parse(entry.expr);
                assert!(parsed.is_ok(), "{}: {}: {parsed:?}", signal.name, entry.expr);
                assert!(entry.expr.contains("__owner__"), "{}", entry.expr);
                for label in entry.object {
                    assert!(entry.expr.contains(label), "{}: {label}", entry.expr);
                }
            }
        }
    }

    #[test]
    fn the_table_is_sorted_and_says_the_domain_twice_alike() {
        let table = table(REVISION).unwrap();
        assert!(table.is_sorted_by(|a, b| a.name < b.name));
        for s in table {
            assert_eq!(domain_of(s.name), Some(s.domain), "{}", s.name);
            assert!(!s.kinds.is_empty() && s.entries.len() < 256);
        }
        let domains: BTreeSet<Domain> = table.iter().map(|s| s.domain).collect();
        assert_eq!(domains.len(), 4);
    }

    #[test]
    fn a_released_revision_never_changes() {
        let mut h = blake3::Hasher::new();
        for s in table(1).unwrap() {
            h.update(format!("{s:?}\n").as_bytes());
        }
        expect_test::expect!["30ec0b279c69cde464d52d34fd358dea370adade374ced7f65ce226982d64394"]
            .assert_eq(&h.finalize().to_hex());
    }

    #[test]
    fn what_revision_2_adds_stands_behind_the_entries_of_revision_1() {
        for ((one, two), n) in table(1).unwrap().iter().zip(table(2).unwrap()).zip(0..) {
            assert_eq!((one.name, n), (two.name, n));
            let added = ADDED_IN_2.iter().filter(|(name, _)| *name == one.name);
            let added: usize = added.map(|(_, entries)| entries.len()).sum();
            assert_eq!(two.entries.len(), one.entries.len() + added, "{}", one.name);
            assert!(two.entries.iter().zip(one.entries).all(|(a, b)| a.expr == b.expr));
        }
        let known = |name: &str| table(1).unwrap().iter().any(|s| s.name == name);
        assert!(ADDED_IN_2.iter().all(|(name, _)| known(name)));
    }

    #[test]
    fn a_revision_that_nobody_made_has_no_table() {
        assert!(table(0).is_none() && table(REVISION + 1).is_none());
    }
}
