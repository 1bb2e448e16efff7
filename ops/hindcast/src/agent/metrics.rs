//! A reading of a host as series.
//!
//! Pure. Names are OpenTelemetry's semantic conventions under their Prometheus spelling: dots become
//! underscores, the unit is appended (`s` → `_seconds`, `By` → `_bytes`, ratio gauges → `_ratio`), monotonic sums end
//! in `_total`. Where OpenTelemetry has no name (run queue, blocked, collisions) it is node_exporter's.
//!
//! Every series carries `job="host"` and `instance=<host.name>`, so that two hosts never share a label set.

use super::Identity;
use super::reading::{Cpu, Interface, Memory, Process, Reading};
use hindcast_model::Labels;
use hindcast_model::labels::METRIC_NAME;

pub const JOB: &str = "host";

/// One series' value at the time of the reading.
pub type Row = (Labels, f64);

struct Rows<'a> {
    instance: &'a str,
    rows: Vec<Row>,
}

impl Rows<'_> {
    fn put(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let fixed = [(METRIC_NAME, name), ("job", JOB), ("instance", self.instance)];
        let pairs = fixed.iter().chain(labels);
        self.rows
            .push((pairs.map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(), value));
    }
}

/// All series of a reading, sorted by labels.
pub fn rows(reading: &Reading, watched: &[&Process], identity: &Identity, per_cpu: bool) -> Vec<Row> {
    let mut out = Rows {
        instance: &identity.host_name,
        rows: vec![],
    };
    cpu(&mut out, reading, per_cpu);
    if let Some(memory) = &reading.memory {
        memory_rows(&mut out, memory);
    }
    paging(&mut out, reading);
    disks(&mut out, reading);
    filesystems(&mut out, reading);
    for interface in &reading.interfaces {
        network(&mut out, interface);
    }
    processes(&mut out, reading, watched);
    out.rows.sort_by(|a, b| a.0.cmp(&b.0));
    out.rows
}

fn cpu(out: &mut Rows<'_>, reading: &Reading, per_cpu: bool) {
    const NAME: &str = "system_cpu_time_seconds_total";
    let one = |out: &mut Rows<'_>, cpu: &Cpu, number: &[(&str, &str)]| {
        for (mode, seconds) in cpu.modes() {
            out.put(NAME, &[&[("cpu_mode", mode)], number].concat(), seconds);
        }
    };
    if per_cpu {
        for (number, cpu) in &reading.cpus {
            one(out, cpu, &[("cpu_logical_number", &number.to_string())]);
        }
    } else if let Some(cpu) = &reading.cpu {
        one(out, cpu, &[]);
    }
    if !reading.cpus.is_empty() {
        out.put("system_cpu_logical_count", &[], reading.cpus.len() as f64);
    }
    if let Some(load) = reading.load {
        for (span, value) in ["1m", "5m", "15m"].into_iter().zip(load) {
            out.put(&format!("system_cpu_load_average_{span}"), &[], value);
        }
    }
    for (name, value) in [
        ("node_procs_running", reading.procs_running),
        ("node_procs_blocked", reading.procs_blocked),
    ] {
        if let Some(value) = value {
            out.put(name, &[], value as f64);
        }
    }
    if let Some(seconds) = reading.uptime_seconds {
        out.put("system_uptime_seconds", &[], seconds);
    }
}

fn memory_rows(out: &mut Rows<'_>, m: &Memory) {
    out.put("system_memory_limit_bytes", &[], m.total as f64);
    for (state, bytes) in [
        ("used", m.used),
        ("free", m.free),
        ("buffers", m.buffers),
        ("cached", m.cached),
    ] {
        out.put(
            "system_memory_usage_bytes",
            &[("system_memory_state", state)],
            bytes as f64,
        );
    }
    if let Some(available) = m.available {
        out.put("system_memory_linux_available_bytes", &[], available as f64);
    }
    let used = m.swap_total.saturating_sub(m.swap_free);
    for (state, bytes) in [("used", used), ("free", m.swap_free)] {
        let labels = [("system_paging_state", state)];
        out.put("system_paging_usage_bytes", &labels, bytes as f64);
        // Without swap there is no share of it: absent, not zero.
        if m.swap_total > 0 {
            let share = bytes as f64 / m.swap_total as f64;
            out.put("system_paging_utilization_ratio", &labels, share);
        }
    }
}

fn paging(out: &mut Rows<'_>, reading: &Reading) {
    let Some(p) = &reading.paging else { return };
    for (direction, pages) in [("in", p.swapped_in), ("out", p.swapped_out)] {
        let labels = [("system_paging_direction", direction)];
        out.put("system_paging_operations_total", &labels, pages as f64);
    }
    for (kind, faults) in [
        ("major", p.faults_major),
        ("minor", p.faults.saturating_sub(p.faults_major)),
    ] {
        out.put(
            "system_paging_faults_total",
            &[("system_paging_fault_type", kind)],
            faults as f64,
        );
    }
}

fn disks(out: &mut Rows<'_>, reading: &Reading) {
    for d in &reading.disks {
        let device = ("system_device", d.device.as_str());
        out.put("system_disk_io_time_seconds_total", &[device], d.busy_seconds);
        for (direction, bytes, operations, seconds) in [
            ("read", d.read_bytes, d.reads, d.read_seconds),
            ("write", d.write_bytes, d.writes, d.write_seconds),
        ] {
            let labels = [device, ("disk_io_direction", direction)];
            out.put("system_disk_io_bytes_total", &labels, bytes as f64);
            out.put("system_disk_operations_total", &labels, operations as f64);
            out.put("system_disk_operation_time_seconds_total", &labels, seconds);
        }
    }
}

fn filesystems(out: &mut Rows<'_>, reading: &Reading) {
    for f in &reading.filesystems {
        let labels = [
            ("system_device", f.mount.device.as_str()),
            ("system_filesystem_mountpoint", f.mount.mountpoint.as_str()),
            ("system_filesystem_type", f.mount.fs_type.as_str()),
            ("system_filesystem_mode", if f.mount.read_only { "ro" } else { "rw" }),
        ];
        out.put("system_filesystem_limit_bytes", &labels, f.limit as f64);
        for (state, bytes) in [("used", f.used), ("free", f.free), ("reserved", f.reserved)] {
            let labels = [&labels[..], &[("system_filesystem_state", state)]].concat();
            out.put("system_filesystem_usage_bytes", &labels, bytes as f64);
        }
    }
}

fn network(out: &mut Rows<'_>, i: &Interface) {
    let name = ("network_interface_name", i.name.as_str());
    for (direction, flow) in [("receive", i.receive), ("transmit", i.transmit)] {
        let labels = [name, ("network_io_direction", direction)];
        out.put("system_network_io_bytes_total", &labels, flow.bytes as f64);
        out.put("system_network_packet_count_total", &labels, flow.packets as f64);
        out.put("system_network_errors_total", &labels, flow.errors as f64);
        out.put("system_network_packet_dropped_total", &labels, flow.dropped as f64);
    }
    out.put(
        "node_network_transmit_colls_total",
        &[("device", i.name.as_str())],
        i.collisions as f64,
    );
}

fn processes(out: &mut Rows<'_>, reading: &Reading, watched: &[&Process]) {
    for (state, count) in reading.process_states() {
        out.put("system_process_count", &[("process_state", state)], count as f64);
    }
    for p in watched {
        let pid = p.pid.to_string();
        let labels = [
            ("process_executable_name", p.name.as_str()),
            ("process_pid", pid.as_str()),
        ];
        if let Some(uptime) = reading.uptime_seconds {
            out.put("process_uptime_seconds", &labels, (uptime - p.started_seconds).max(0.0));
        }
        for (mode, seconds) in [("user", p.user_seconds), ("system", p.system_seconds)] {
            let labels = [labels[0], labels[1], ("cpu_mode", mode)];
            out.put("process_cpu_time_seconds_total", &labels, seconds);
        }
        out.put("process_memory_usage_bytes", &labels, p.memory_bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::reading::tests::recorded;
    use super::*;
    use expect_test::expect;
    use hindcast_model::TenantId;
    use hindcast_model::resource::{Kind, owning_resource};
    use std::fmt::Write;

    fn identity(name: &str) -> Identity {
        Identity {
            host_name: name.to_owned(),
            os_type: "linux".to_owned(),
        }
    }

    fn recorded_rows(per_cpu: bool) -> Vec<Row> {
        let reading = Reading::parse(&recorded());
        let watched = super::super::reading::watched(&reading, None, &[], 1);
        rows(&reading, &watched, &identity("web-1"), per_cpu)
    }

    /// Each series once, without the labels that all of them have.
    fn show(rows: &[Row]) -> String {
        let mut out = String::new();
        for (labels, value) in rows {
            writeln!(out, "{} {value}", labels.without("job").without("instance")).unwrap();
        }
        out
    }

    #[test]
    fn a_recorded_host_fills_the_signals_of_servers() {
        expect_test::expect_file!["testdata/series.txt"].assert_eq(&show(&recorded_rows(false)));
    }

    #[test]
    fn cpus_one_by_one_replace_the_sum_so_that_nothing_counts_twice() {
        let user: Vec<_> = recorded_rows(true)
            .into_iter()
            .filter(|(l, _)| l.value("cpu_mode") == "user" && l.metric_name() == Some("system_cpu_time_seconds_total"))
            .collect();
        expect![[r#"
            system_cpu_time_seconds_total{cpu_logical_number="0", cpu_mode="user"} 576.78
            system_cpu_time_seconds_total{cpu_logical_number="1", cpu_mode="user"} 611.95
        "#]]
        .assert_eq(&show(&user));
    }

    #[test]
    fn every_series_belongs_to_the_host_and_is_unique() {
        let rows = recorded_rows(false);
        let mut seen = std::collections::BTreeSet::new();
        for (labels, value) in &rows {
            let owner = owning_resource(&TenantId::default(), labels, &identity("web-1").attributes());
            assert_eq!(
                owner.map(|r| (r.kind, r.name)),
                Some((Kind::Host, "web-1".to_owned())),
                "{labels}"
            );
            assert_eq!((labels.value("job"), labels.value("instance")), ("host", "web-1"));
            assert!(value.is_finite() && *value >= 0.0, "{labels} {value}");
            assert!(seen.insert(labels.clone()), "{labels} twice");
        }
    }
}
