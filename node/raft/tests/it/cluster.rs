//! Real threads, three nodes, disks that lose what was not synced.

use crate::common::{Cluster, Lines, ListMachine};
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{GroupId, NodeId};
use hindcast_raft::{ProposeError, Role};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "measures real time")]
async fn a_lone_node_leads_at_once() {
    let began = Instant::now();
    let cluster = Cluster::started(1, 5);
    for group in 0..5 {
        cluster.propose(group, "first").await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn leaders_of_new_groups_are_spread_over_the_nodes() {
    let cluster = Cluster::started(3, 6);
    let mut led = std::collections::BTreeMap::new();
    for group in 0..6 {
        *led.entry(cluster.leader(group).await).or_insert(0) += 1;
    }
    assert!(led.values().all(|n| *n <= 3), "groups led per node: {led:?}");
    assert!(led.len() >= 2);
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_leaders_and_of_all_nodes() {
    let mut cluster = Cluster::started(3, 2);
    let mut acked = Vec::new();
    for round in 0..3 {
        for n in 0..40 {
            let line = format!("{round}-{n}");
            if cluster.propose(0, &line).await.is_ok() {
                acked.push(line);
            }
        }
        let leader = cluster.leader(0).await;
        cluster.kill(leader);
        for n in 0..20 {
            let line = format!("{round}-after-{n}");
            if cluster.propose(0, &line).await.is_ok() {
                acked.push(line);
            }
        }
        cluster.start(leader);
    }
    for node in 1..=3 {
        cluster.kill(node);
    }
    for node in 1..=3 {
        cluster.start(node);
    }
    cluster.propose(0, "last").await.unwrap();
    acked.push("last".to_owned());
    let lines = cluster.converge(0).await;
    for line in &acked {
        let times = lines.iter().filter(|l| *l == line).count();
        assert_eq!(times, 1, "{line} was acknowledged and is there {times} times");
    }
    assert!(
        acked.len() >= 150,
        "most proposals must have gone through: {}",
        acked.len()
    );
}

#[tokio::test]
async fn a_node_that_was_away_long_is_brought_back_by_a_snapshot() {
    let mut cluster = Cluster::new(3, 1);
    cluster.config.tail_bytes = 4 << 10;
    for node in 1..=3 {
        cluster.start(node);
    }
    cluster.propose(0, "before").await.unwrap();
    let away = if cluster.leader(0).await == 3 { 2 } else { 3 };
    cluster.kill(away);
    let padding = "x".repeat(400);
    for n in 0..600 {
        cluster.propose(0, &format!("{n} {padding}")).await.unwrap();
    }
    // Truncation happens on ticks.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let leader = cluster.leader(0).await;
    let first = cluster.status(leader, 0).first_index;
    assert!(first > 300, "the log must have been cut, it starts at {first}");
    cluster.start(away);
    let lines = cluster.converge(0).await;
    assert_eq!(lines.len(), 601);
    assert!(
        cluster.switch.snapshots.load(Ordering::Relaxed) >= 1,
        "no snapshot was sent"
    );
    // It goes on from there, also over a restart, and may lead.
    cluster.propose(0, "after").await.unwrap();
    cluster.kill(away);
    cluster.start(away);
    cluster.leader(0).await;
    let leader = cluster.leader(0).await;
    if leader != away {
        cluster.hosts[&leader].transfer_leader(GroupId(0), NodeId(away));
    }
    let others: Vec<_> = (1..=3).filter(|n| *n != away).collect();
    cluster.kill(others[0]);
    cluster
        .propose(0, "with the restored node in the quorum")
        .await
        .unwrap();
    assert_eq!(cluster.converge(0).await.len(), 603);
}

/// It ended the node, whose data was well, as often as it started.
#[tokio::test]
async fn a_snapshot_that_finds_the_disk_full_waits_for_room_and_other_groups_go_on() {
    let mut cluster = Cluster::new(3, 2);
    cluster.config.tail_bytes = 4 << 10;
    for node in 1..=3 {
        cluster.start(node);
    }
    cluster.propose(0, "before").await.unwrap();
    let away = if cluster.leader(0).await == 3 { 2 } else { 3 };
    cluster.kill(away);
    let padding = "x".repeat(400);
    for n in 0..600 {
        cluster.propose(0, &format!("{n} {padding}")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    cluster.full.store(2, Ordering::Relaxed);
    cluster.start(away);
    while cluster.full.load(Ordering::Relaxed) == 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.propose(1, "meanwhile").await.unwrap();
    assert_eq!(cluster.converge(1).await.len(), 1);
    assert!(cluster.lines[&(away, 0)].lock().len() <= 1, "it has no room yet");
    assert_eq!(cluster.converge(0).await.len(), 601);
    cluster.propose(0, "after").await.unwrap();
    assert_eq!(cluster.converge(0).await.len(), 602);
}

#[tokio::test]
async fn a_short_outage_is_made_up_for_from_the_log() {
    let mut cluster = Cluster::started(3, 1);
    cluster.propose(0, "before").await.unwrap();
    let away = if cluster.leader(0).await == 3 { 2 } else { 3 };
    cluster.kill(away);
    for n in 0..100 {
        cluster.propose(0, &format!("{n}")).await.unwrap();
    }
    cluster.start(away);
    assert_eq!(cluster.converge(0).await.len(), 101);
    assert_eq!(cluster.switch.snapshots.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_read_sees_every_write_acknowledged_before_it_on_every_node() {
    let cluster = Cluster::started(3, 1);
    for n in 0..60 {
        cluster.propose(0, &format!("{n}")).await.unwrap();
        let node = n % 3 + 1;
        let host = &cluster.hosts[&node];
        host.read_index(GroupId(0), Duration::from_secs(5)).await.unwrap();
        let seen = cluster.lines(node, 0).len() as u64;
        assert!(seen > n, "node {node} read {seen} lines after {} writes", n + 1);
    }
}

#[tokio::test]
async fn a_lone_node_reads_what_it_confirmed_in_its_lives_before() {
    let mut cluster = Cluster::started(1, 1);
    for life in 0..5 {
        // At once after the start, when what was confirmed before may not be applied yet.
        let host = &cluster.hosts[&1];
        host.read_index(GroupId(0), Duration::from_secs(5)).await.unwrap();
        assert_eq!(cluster.lines(1, 0).len(), life * 100, "life {life}");
        for n in 0..100 {
            cluster.propose(0, &format!("{n}")).await.unwrap();
        }
        cluster.kill(1);
        cluster.start(1);
    }
}

#[tokio::test]
async fn a_leader_that_is_cut_off_serves_no_reads_and_confirms_nothing() {
    let mut cluster = Cluster::started(3, 1);
    cluster.propose(0, "before").await.unwrap();
    let old = cluster.leader(0).await;
    cluster.switch.cut(old, true);
    let host = cluster.hosts[&old].clone();
    let read = host.read_index(GroupId(0), Duration::from_millis(300)).await;
    assert!(read.is_err(), "{read:?}");
    let write = host
        .propose(GroupId(0), b"lonely".to_vec(), Duration::from_secs(1))
        .await;
    assert!(write.is_err(), "{write:?}");
    // Check-quorum makes it step down; the others have a leader of their own.
    let mut watch = host.leadership(GroupId(0)).unwrap();
    watch.wait_for(|l| l.role != Role::Leader).await.unwrap();
    let hosts = cluster.hosts.clone();
    cluster.hosts.remove(&old);
    cluster.propose(0, "elsewhere").await.unwrap();
    cluster.hosts = hosts;
    cluster.switch.cut(old, false);
    let lines = cluster.converge(0).await;
    assert_eq!(lines, ["before", "elsewhere"]);
}

#[tokio::test]
async fn a_follower_says_who_leads_and_takes_nothing() {
    let cluster = Cluster::started(3, 1);
    cluster.propose(0, "x").await.unwrap();
    let leader = cluster.leader(0).await;
    let follower = leader % 3 + 1;
    let host = &cluster.hosts[&follower];
    host.read_index(GroupId(0), Duration::from_secs(5)).await.unwrap();
    let err = host
        .propose(GroupId(0), b"y".to_vec(), Duration::from_secs(1))
        .await
        .unwrap_err();
    let leader = Some(NodeId(leader));
    assert_eq!(err, ProposeError::NotLeader { leader });
    let too_large = vec![0; 9 << 20];
    let err = host
        .propose(GroupId(0), too_large, Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(matches!(err, ProposeError::TooLarge { .. }));
}

#[tokio::test]
async fn a_full_pipe_is_refused_and_nothing_of_it_is_half_done() {
    let mut cluster = Cluster::new(1, 1);
    cluster.config.message_bytes_max = 16 << 10;
    cluster.config.uncommitted_bytes_max = 64 << 10;
    cluster.start(1);
    cluster.propose(0, "first").await.unwrap();
    let host = cluster.hosts[&1].clone();
    let mut waiting = Vec::new();
    for n in 0..200 {
        let (host, data) = (host.clone(), format!("{n} {}", "x".repeat(8 << 10)));
        waiting.push(tokio::spawn(async move {
            host.propose(GroupId(0), data.into_bytes(), Duration::from_secs(5))
                .await
        }));
    }
    let mut confirmed = 1;
    let mut full = 0;
    for w in waiting {
        match w.await.unwrap() {
            Ok(_) => confirmed += 1,
            Err(ProposeError::Full) => full += 1,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(full > 0, "the limit was never reached");
    assert_eq!(cluster.lines(1, 0).len(), confirmed);
}

#[tokio::test]
async fn leadership_can_be_handed_over() {
    let cluster = Cluster::started(3, 1);
    cluster.propose(0, "x").await.unwrap();
    let from = cluster.leader(0).await;
    let to = from % 3 + 1;
    let mut watch = cluster.hosts[&to].leadership(GroupId(0)).unwrap();
    cluster.hosts[&from].transfer_leader(GroupId(0), NodeId(to));
    let led = tokio::time::timeout(Duration::from_secs(5), watch.wait_for(|l| l.role == Role::Leader)).await;
    assert!(matches!(led, Ok(Some(_))), "node {to} does not lead");
    cluster.propose(0, "y").await.unwrap();
}

#[tokio::test]
async fn a_failed_sync_of_the_log_ends_the_process_and_confirms_nothing() {
    let cluster = Cluster::started(1, 1);
    cluster.propose(0, "kept").await.unwrap();
    let host = &cluster.hosts[&1];
    cluster.disks[&1].fail_sync_after(0);
    let lost = host.propose(GroupId(0), b"lost".to_vec(), Duration::from_secs(2)).await;
    assert_eq!(lost, Err(ProposeError::Unconfirmed));
    let mut fatal = host.fatal();
    let why = fatal.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(why.contains("the Raft log cannot be written"), "{why}");
    let late = host.propose(GroupId(0), b"late".to_vec(), Duration::from_secs(1)).await;
    assert!(
        matches!(late, Err(ProposeError::Stopped | ProposeError::Unconfirmed)),
        "{late:?}"
    );
}

#[tokio::test]
async fn a_node_that_lost_its_log_but_not_its_word_is_quarantined() {
    let mut cluster = Cluster::started(3, 1);
    for n in 0..20 {
        cluster.propose(0, &format!("{n}")).await.unwrap();
    }
    let victim = if cluster.leader(0).await == 3 { 2 } else { 3 };
    cluster.converge(0).await;
    cluster.kill(victim);
    // Log and machine are gone; the leader remembers what this node confirmed.
    cluster.disks.insert(victim, SimDisk::new());
    cluster.start(victim);
    let mut quarantined = None;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        quarantined = cluster.status(victim, 0).quarantined;
        if quarantined.is_some() {
            break;
        }
    }
    let why = quarantined.expect("the loss is noticed");
    assert!(why.contains("has this node's word for entries up to"), "{why}");
    assert!(cluster.hosts[&victim].fatal().borrow().is_none());
    cluster.hosts.remove(&victim);
    cluster.propose(0, "the others go on").await.unwrap();
}

#[tokio::test]
async fn a_node_whose_log_was_taken_away_gives_no_vote_from_the_first_moment_on() {
    let mut cluster = Cluster::started(3, 1);
    cluster.propose(0, "x").await.unwrap();
    cluster.converge(0).await;
    for node in 1..=3 {
        cluster.kill(node);
    }
    // Nothing of it is saved elsewhere, and nobody is there to tell: alone it would look like a new node.
    cluster.disks[&3].remove_dir_all("raft/log").unwrap();
    cluster.start(3);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let why = cluster.status(3, 0).quarantined.expect("the loss is noticed");
    assert!(why.contains("is gone, and with it what this node voted"), "{why}");
    // It stays so over a restart, until it is rebuilt.
    cluster.start(1);
    cluster.start(2);
    cluster.propose(0, "the others go on").await.unwrap();
    cluster.kill(3);
    cluster.start(3);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(cluster.status(3, 0).quarantined.is_some());
}

#[test]
fn the_list_machine_reads_what_it_wrote() {
    use hindcast_raft::{Entry, Machine};
    let (disk, lines) = (SimDisk::new(), Lines::default());
    let mut machine = ListMachine::open(disk.clone(), "m", lines, 1, Default::default());
    let data = bytes::Bytes::from_static(b"abc");
    machine
        .apply(&Entry {
            index: 7,
            term: 1,
            data: data.clone(),
        })
        .unwrap();
    machine.maintain(&mut |_| {}).unwrap();
    let again = Lines::default();
    let reopened = ListMachine::open(disk, "m", again.clone(), 1, Default::default());
    assert_eq!((reopened.applied(), again.lock().clone()), (7, vec![data]));
}
