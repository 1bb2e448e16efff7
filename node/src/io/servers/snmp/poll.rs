//! One poll of a device: its name looked up, a socket for it, a question at a time.
//!
//! A question without an answer is asked again as often as the list says. What is kept of answers takes room from that of scraped
//! pages until the samples are stored. For its first room a poll waits; one that holds some and finds no more breaks off, so that polls
//! never wait for each other.

use super::files::Polled;
use hindcast_env::io::os_rng;
use hindcast_env::{Clock, Rng};
use hindcast_scrape::text::PageSample;
use hindcast_snmp::Pdu;
use hindcast_snmp::pdu::MESSAGE_BYTES_MAX;
use hindcast_snmp::poll::Poll;
use hindcast_snmp::session::{Heard, Session};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct PollStats {
    pub polls: AtomicU64,
    pub failed: AtomicU64,
    pub questions: AtomicU64,
    /// Questions that were asked again, because no answer came in time.
    pub retries: AtomicU64,
    /// Values that were left out of polls, because they cannot be read or are no numbers.
    pub unread: AtomicU64,
}

/// A poll that went through, and the room that it holds.
#[derive(Debug)]
pub struct Polling {
    poll: Poll,
    room: Option<OwnedSemaphorePermit>,
}

impl Polling {
    /// Large tables take a moment.
    pub fn into_samples(self) -> (Vec<PageSample>, Option<OwnedSemaphorePermit>) {
        let samples = self.poll.finish().into_iter().map(|r| PageSample {
            pairs: r.pairs,
            value: r.value,
            at_ms: None,
            exemplar: None,
        });
        (samples.collect(), self.room)
    }
}

/// Polls a device. Why it could not be done is said in words for people.
pub async fn poll(
    polled: &Polled,
    clock: &dyn Clock,
    room: &Arc<Semaphore>,
    stats: &PollStats,
) -> Result<Polling, String> {
    let known = polled.session.lock().take();
    let session = match known {
        Some(session) => session,
        None => {
            let mut rng = os_rng().map_err(|e| format!("the machine gives no random numbers: {e}"))?;
            Session::new(polled.device.access.clone(), rng.next_u64())
        }
    };
    let mut asking = Asking {
        polled,
        socket: connect(polled).await?,
        session,
        clock,
        stats,
        buffer: vec![0; MESSAGE_BYTES_MAX],
    };
    let mut poll = Poll::new(polled.device.repetitions);
    let mut held: Option<OwnedSemaphorePermit> = None;
    let done = loop {
        let question = match poll.question() {
            Ok(Some(question)) => question,
            Ok(None) => break Ok(()),
            Err(why) => break Err(why.to_string()),
        };
        let answer = match asking.ask(&question).await {
            Ok(answer) => answer,
            Err(why) => break Err(why),
        };
        let unread_before = poll.unread();
        let taken = poll.take(answer);
        stats.unread.fetch_add(poll.unread() - unread_before, Relaxed);
        if let Err(why) = taken {
            break Err(why.to_string());
        }
        if let Err(why) = take_room(&mut held, poll.bytes(), room).await {
            break Err(why);
        }
    };
    *polled.session.lock() = Some(asking.session);
    done.map(|()| Polling { poll, room: held })
}

/// Holds room for `bytes` in all.
async fn take_room(held: &mut Option<OwnedSemaphorePermit>, bytes: usize, room: &Arc<Semaphore>) -> Result<(), String> {
    let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let more = u32::try_from(bytes.saturating_sub(has)).unwrap_or(u32::MAX);
    match held {
        Some(held) => held.merge(room.clone().try_acquire_many_owned(more).map_err(|_| {
            "there is no room for more of its answers: what is scraped and polled elsewhere takes it all; let fewer be asked at once, or by \
             more nodes"
                .to_owned()
        })?),
        None => {
            let first = room.clone().acquire_many_owned(more).await;
            *held = Some(first.map_err(|_| "the node ends".to_owned())?);
        }
    }
    Ok(())
}

async fn connect(polled: &Polled) -> Result<UdpSocket, String> {
    let (host, port) = (&polled.device.host, polled.device.port);
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let address = found
        .map_err(|e| format!("the name {host} cannot be looked up: {e}"))?
        .next();
    let address = address.ok_or_else(|| format!("the name {host} has no address"))?;
    let own: SocketAddr = match address.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own)
        .await
        .map_err(|e| format!("no socket can be had: {e}"))?;
    // From now on, nobody else is heard.
    socket
        .connect(address)
        .await
        .map_err(|e| format!("{address} cannot be reached: {e}"))?;
    Ok(socket)
}

struct Asking<'a> {
    polled: &'a Polled,
    socket: UdpSocket,
    session: Session,
    clock: &'a dyn Clock,
    stats: &'a PollStats,
    buffer: Vec<u8>,
}

impl Asking<'_> {
    async fn ask(&mut self, question: &Pdu) -> Result<Pdu, String> {
        let (timeout, retries) = (self.polled.device.timeout, self.polled.device.retries);
        self.session.begin();
        for attempt in 0..=retries {
            self.stats.retries.fetch_add(u64::from(attempt > 0), Relaxed);
            match tokio::time::timeout(timeout.as_duration(), self.ask_once(question)).await {
                Ok(answered) => return answered,
                Err(_) => continue,
            }
        }
        let asked = retries + 1;
        Err(match self.session.unread() {
            Some(why) => format!(
                "no answer that can be read within {timeout}, asked {asked} times; of what came from there last: {why}"
            ),
            None => format!(
                "no answer within {timeout}, asked {asked} times: it is away, or does not know the community, or this node may not ask it"
            ),
        })
    }

    async fn ask_once(&mut self, question: &Pdu) -> Result<Pdu, String> {
        loop {
            let datagram = self.session.ask(question, self.clock.monotonic());
            self.stats.questions.fetch_add(1, Relaxed);
            self.socket.send(&datagram).await.map_err(|e| self.broken(&e))?;
            loop {
                let bytes = self.socket.recv(&mut self.buffer).await.map_err(|e| self.broken(&e))?;
                match self.session.hear(&self.buffer[..bytes], self.clock.monotonic()) {
                    Heard::Answer(pdu) => return Ok(pdu),
                    Heard::AskAgain => break,
                    Heard::NotOurs => {}
                    Heard::Failed(why) => return Err(why.to_string()),
                }
            }
        }
    }

    fn broken(&self, error: &std::io::Error) -> String {
        let address = self.polled.device.address();
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("nobody listens at {address}: is the agent running there?")
            }
            _ => format!("{address} cannot be asked: {error}"),
        }
    }
}
