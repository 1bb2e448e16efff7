//! The episodes: what goes wrong, when, and for how long.

use crate::clients::{self, Cases, Flooded, Nodes};
use crate::history::What;
use crate::hosts::{DiskFault, EIO, HOST_MEMORY_BYTES, Hosts, NODES_MAX, now};
use crate::net::{Link, Place, RECEIVERS};
use anyhow::{Context, Result};
use clap::ValueEnum;
use hindcast_env::{Rng, SeededRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// One kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Episode {
    /// The leader of a shard is killed three times.
    LeaderKill,
    /// The leader is heard and hears nothing, then hears and is not heard.
    OneWay,
    /// The leader is alone on its side; alarms on both.
    Split,
    /// The power of one host fails, then that of all hosts.
    PowerCut,
    /// Nothing can be written to the leader's disk, for lack of room.
    DiskFull,
    /// A follower's disk cannot sync.
    FsyncError,
    /// The leader stands still for 15 s and goes on as if nothing had been.
    Pause,
    /// The leader's clock is two hours ahead, then two hours behind; each time the meta group comes to be led by it.
    Clock,
    /// One node after the other is stopped in order and started again.
    RollingRestart,
    /// One packet in ten is lost, one in twenty comes twice, all late and in another order.
    Loss,
    /// Each sync of the leader's disk takes 100 ms.
    SlowDisk,
    /// Nobody who is to be told answers.
    Receivers,
    /// A host burns down; a new one takes its place.
    Replace,
    /// Kills and pauses of anybody, every few seconds.
    Storm,
    /// For a minute forty writers send many times what can be taken, whatever they are told; nodes have 512 MiB and a part
    /// of a processor.
    Overload,
}

/// Those of every run of `cargo xtask prove`.
pub const DEFAULT: [Episode; 8] = [
    Episode::LeaderKill,
    Episode::OneWay,
    Episode::Split,
    Episode::PowerCut,
    Episode::DiskFull,
    Episode::FsyncError,
    Episode::Pause,
    Episode::Clock,
];

const LEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// So that the flood is many times what the nodes can take, on a machine that makes the flood, too.
const OVERLOAD_CPU_PERCENT: u32 = 20;
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);

impl Episode {
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// What a script works on. Locked for moments only, so that whoever tends the nodes comes in between.
pub struct Stage {
    pub hosts: Arc<Mutex<Hosts>>,
    pub rng: SeededRng,
    /// A long run has time for long faults.
    pub is_long: bool,
    pub cases: Cases,
    pub nodes: Nodes,
    pub flooded: Flooded,
    pub base_ms: i64,
}

async fn seconds(s: f64) {
    tokio::time::sleep(Duration::from_secs_f64(s)).await;
}

impl Stage {
    /// Who leads the first shard.
    async fn leader(&self) -> Result<usize> {
        let asked = now();
        loop {
            let found = self.hosts.lock().await.leader(1).await;
            match found {
                Some(leader) => return Ok(leader),
                None if asked.elapsed() > LEADER_TIMEOUT => {
                    anyhow::bail!("shard 1 has no leader after {LEADER_TIMEOUT:?}")
                }
                None => seconds(0.1).await,
            }
        }
    }

    async fn with<T>(&self, act: impl FnOnce(&mut Hosts) -> Result<T>) -> Result<T> {
        act(&mut *self.hosts.lock().await)
    }

    /// Does something to one host and writes it down.
    async fn hit(&self, i: usize, what: &str, act: impl FnOnce(&mut Hosts) -> Result<()>) -> Result<()> {
        self.with(|hosts| {
            hosts.history.fault(format!("{what} of node {}", hosts.all[i].id));
            act(hosts)
        })
        .await
        .with_context(|| what.to_owned())
    }

    async fn places(&self) -> Vec<Place> {
        let hosts = self.hosts.lock().await;
        hosts.all.iter().filter(|h| h.is_wanted()).map(|h| h.place).collect()
    }

    /// Cuts the links between one host and all others, in one direction or both; clients reach all of them.
    async fn isolate(&self, i: usize, hears: bool, is_heard: bool) -> Result<()> {
        let places = self.places().await;
        let what = match (hears, is_heard) {
            (false, false) => "isolation",
            (false, true) => "deafness",
            _ => "silence",
        };
        self.hit(i, what, |hosts| {
            let me = hosts.all[i].place;
            for other in places.into_iter().filter(|p| *p != me) {
                let link = |is_good| if is_good { Link::GOOD } else { Link::CUT };
                hosts.net.set(other, me, link(hears));
                hosts.net.set(me, other, link(is_heard));
            }
            Ok(())
        })
        .await
    }

    /// Somebody who runs.
    async fn anybody(&mut self) -> usize {
        let hosts = self.hosts.lock().await;
        let running: Vec<usize> = (0..hosts.all.len()).filter(|i| hosts.all[*i].is_running()).collect();
        running[self.rng.below(running.len() as u64) as usize]
    }

    pub async fn play(&mut self, episode: Episode) -> Result<()> {
        match episode {
            Episode::LeaderKill => {
                for _ in 0..3 {
                    let leader = self.leader().await?;
                    self.kill_for(leader, 3.0).await?;
                    seconds(4.0).await;
                }
                Ok(())
            }
            Episode::OneWay => {
                let leader = self.leader().await?;
                self.isolate(leader, false, true).await?;
                seconds(10.0).await;
                self.hosts.lock().await.net.heal();
                seconds(2.0).await;
                let leader = self.leader().await?;
                self.isolate(leader, true, false).await?;
                seconds(10.0).await;
                Ok(())
            }
            Episode::Split => {
                let leader = self.leader().await?;
                self.isolate(leader, false, false).await?;
                seconds(if self.is_long { 60.0 } else { 20.0 }).await;
                Ok(())
            }
            Episode::PowerCut => {
                let one = self.anybody().await;
                self.hit(one, "power-cut", |hosts| hosts.cut_power(one)).await?;
                seconds(2.0).await;
                self.with(|hosts| hosts.start(one)).await?;
                seconds(8.0).await;
                self.with(|hosts| {
                    let all: Vec<usize> = (0..hosts.all.len()).filter(|i| hosts.all[*i].is_wanted()).collect();
                    for &i in &all {
                        hosts.history.fault(format!("power-cut of node {}", hosts.all[i].id));
                        hosts.cut_power(i)?;
                    }
                    all.into_iter().try_for_each(|i| hosts.start(i))
                })
                .await?;
                seconds(8.0).await;
                Ok(())
            }
            Episode::DiskFull => {
                let leader = self.leader().await?;
                self.hit(leader, "full-disk", |hosts| hosts.fill_disk(leader)).await?;
                seconds(18.0).await;
                self.with(|hosts| hosts.free_disk(leader)).await
            }
            Episode::FsyncError => {
                let leader = self.leader().await?;
                let follower = loop {
                    let one = self.anybody().await;
                    if one != leader {
                        break one;
                    }
                };
                let fault = DiskFault::SyncErrno;
                self.hit(follower, "sync-error", |hosts| hosts.set_disk(follower, fault, EIO))
                    .await?;
                seconds(8.0).await;
                self.with(|hosts| hosts.set_disk(follower, fault, 0)).await?;
                seconds(4.0).await;
                let fault = DiskFault::WriteErrno;
                self.hit(follower, "write-error", |hosts| hosts.set_disk(follower, fault, EIO))
                    .await?;
                seconds(4.0).await;
                self.with(|hosts| hosts.set_disk(follower, fault, 0)).await?;
                let fault = DiskFault::ShortWrites;
                self.hit(follower, "short-writes", |hosts| hosts.set_disk(follower, fault, 1))
                    .await?;
                seconds(5.0).await;
                self.with(|hosts| hosts.set_disk(follower, fault, 0)).await
            }
            Episode::Pause => {
                let leader = self.leader().await?;
                self.pause_for(leader, 15.0).await?;
                seconds(6.0).await;
                Ok(())
            }
            Episode::Clock => {
                let leader = self.leader().await?;
                let id = self.hosts.lock().await.all[leader].id.to_string();
                for (what, seconds_off) in [("clock-ahead", 7200), ("clock-behind", -7200)] {
                    self.hit(leader, what, |hosts| hosts.set_clock(leader, seconds_off))
                        .await?;
                    seconds(3.0).await;
                    // What it stamped in the moment of the step must not be cluster time when it leads.
                    self.operate(leader, &["cluster", "transfer", "meta", &id]).await?;
                    let kind = format!("{what}-{}", self.rng.below(1_000_000));
                    self.raise(&kind, 2, 4.0).await;
                }
                self.operate(leader, &["cluster", "transfer", "meta", "--spread"])
                    .await?;
                self.with(|hosts| hosts.set_clock(leader, 0)).await
            }
            Episode::RollingRestart => {
                let count = self.hosts.lock().await.all.len();
                for i in 0..count {
                    if !self.hosts.lock().await.all[i].is_running() {
                        continue;
                    }
                    self.hit(i, "restart", |hosts| hosts.stop(i)).await?;
                    self.with(|hosts| hosts.start(i)).await?;
                    seconds(6.0).await;
                }
                Ok(())
            }
            Episode::Loss => {
                let places = self.places().await;
                let bad = Link {
                    lost: 100,
                    doubled: 50,
                    delay: (Duration::ZERO, Duration::from_millis(30)),
                    ..Link::GOOD
                };
                self.with(|hosts| {
                    hosts.history.fault("loss on all links");
                    for &from in &places {
                        places.iter().for_each(|to| hosts.net.set(from, *to, bad));
                    }
                    Ok(())
                })
                .await?;
                seconds(20.0).await;
                Ok(())
            }
            Episode::SlowDisk => {
                let leader = self.leader().await?;
                let fault = DiskFault::SyncDelayMs;
                self.hit(leader, "slow-disk", |hosts| hosts.set_disk(leader, fault, 100))
                    .await?;
                seconds(20.0).await;
                Ok(())
            }
            Episode::Receivers => {
                let places = self.places().await;
                self.with(|hosts| {
                    hosts.history.fault("outage of all receivers");
                    places.iter().for_each(|p| hosts.net.set(*p, RECEIVERS, Link::CUT));
                    Ok(())
                })
                .await?;
                seconds(if self.is_long { 120.0 } else { 20.0 }).await;
                Ok(())
            }
            Episode::Replace => self.replace().await,
            Episode::Storm => self.storm().await,
            Episode::Overload => self.overload().await,
        }
    }

    /// One more alarm every so often.
    async fn raise(&self, kind: &str, count: u32, pause: f64) {
        for n in 1..=count {
            self.cases.lock().expect("plain data").insert(format!("{kind}-{n}"));
            seconds(pause).await;
        }
    }

    async fn overload(&self) -> Result<()> {
        self.share_of_cpu(Some(OVERLOAD_CPU_PERCENT)).await?;
        self.raise("calm", 15, 1.0).await;
        seconds(5.0).await;
        self.cases
            .lock()
            .expect("plain data")
            .retain(|case| !case.starts_with("calm"));
        let history = self.hosts.lock().await.history.clone();
        history.fault("flood of 40 writers");
        history.tell(What::Flood { begins: true });
        let (stop, stopped) = watch::channel(false);
        let (nodes, flooded) = (self.nodes.clone(), self.flooded.clone());
        let flood = tokio::spawn(clients::flood(self.base_ms, nodes, history.clone(), flooded, stopped));
        self.raise("flood", 30, 2.0).await;
        let _ = stop.send(true);
        flood.await?;
        history.tell(What::Flood { begins: false });
        seconds(10.0).await;
        self.share_of_cpu(None).await?;
        self.with(|hosts| {
            for host in hosts.all.iter().filter(|h| h.is_running()) {
                let (node, peak, bound) = (host.id, host.memory_peak()?, HOST_MEMORY_BYTES / 100 * 85);
                hosts.history.tell(What::Memory { node, peak, bound });
                println!("           node {node} used {} MiB at most", peak >> 20);
            }
            Ok(())
        })
        .await
    }

    async fn share_of_cpu(&self, percent: Option<u32>) -> Result<()> {
        let hosts = self.hosts.lock().await;
        (0..hosts.all.len()).try_for_each(|i| hosts.set_cpu(i, percent))
    }

    async fn kill_for(&self, i: usize, down: f64) -> Result<()> {
        self.hit(i, "kill", |hosts| {
            hosts.kill(i);
            Ok(())
        })
        .await?;
        seconds(down).await;
        self.with(|hosts| hosts.start(i)).await
    }

    async fn pause_for(&self, i: usize, still: f64) -> Result<()> {
        self.hit(i, "pause", |hosts| hosts.pause(i)).await?;
        seconds(still).await;
        self.with(|hosts| match hosts.all[i].is_running() {
            true => hosts.resume(i),
            false => Ok(()),
        })
        .await
    }

    async fn storm(&mut self) -> Result<()> {
        let started = now();
        while started.elapsed() < Duration::from_secs(25) {
            let victim = self.anybody().await;
            let span = 0.2 + self.rng.below(1200) as f64 / 1000.0;
            match self.rng.below(2) {
                0 => self.kill_for(victim, span).await?,
                _ => self.pause_for(victim, span).await?,
            }
            seconds(0.1 + self.rng.below(800) as f64 / 1000.0).await;
        }
        Ok(())
    }

    /// One node is lost with its disk, is taken out of the cluster, and a new one with a number of its own joins.
    async fn replace(&mut self) -> Result<()> {
        let next = self.hosts.lock().await.all.iter().map(|h| h.id).max().unwrap_or(0) + 1;
        if next > NODES_MAX {
            println!("           no number is left for a new host");
            return Ok(());
        }
        let victim = self.anybody().await;
        self.hit(victim, "fire", |hosts| hosts.wipe(victim)).await?;
        let id = self.hosts.lock().await.all[victim].id.to_string();
        let other = self.anybody().await;
        let joined = self
            .with(|hosts| {
                let i = hosts.add_joining(next)?;
                hosts.start(i)?;
                Ok(i)
            })
            .await?;
        self.operate(other, &["cluster", "move", &id, &next.to_string()])
            .await?;
        self.with(|hosts| {
            anyhow::ensure!(hosts.all[joined].is_running(), "the new node does not run");
            hosts.all.remove(victim);
            Ok(())
        })
        .await
    }

    /// Runs a command against one node until it succeeds.
    async fn operate(&self, i: usize, args: &[&str]) -> Result<()> {
        let started = now();
        loop {
            let mut command = self.hosts.lock().await.command(i, args);
            let said = match tokio::time::timeout(OPERATION_TIMEOUT, command.output()).await {
                Ok(output) => {
                    let output = output?;
                    if output.status.success() {
                        return Ok(());
                    }
                    String::from_utf8_lossy(&output.stderr).trim().to_owned()
                }
                Err(_) => format!("not done after {OPERATION_TIMEOUT:?}"),
            };
            anyhow::ensure!(started.elapsed() < OPERATION_TIMEOUT, "{}: {said}", args.join(" "));
            seconds(0.5).await;
        }
    }
}

/// What a script that failed is told as.
pub fn failed(name: &str, error: &anyhow::Error) -> What {
    What::Healed {
        name: name.to_owned(),
        took_ms: 0,
        missing: format!("{error:#}"),
    }
}
