//! What to ask a remote desk next, so that our ticket is there once and up to date.
//!
//! Invariants
//! - Nothing is created unless the look-up just before found nothing. A create without a clear answer is followed
//!   by a look-up, never by another create.
//! - Ends after at most `ASKS_MAX` requests; the outbox starts again later.
//!
//! The promise that comes of it is "once after reconciliation": it needs a desk whose search finds what it has
//! confirmed or taken in.

use crate::mapping::{DeskFields, RemoteRequest, RemoteTicket};

/// Requests of one attempt: look-up, create, look-up, update, and some room.
pub const ASKS_MAX: u32 = 6;

/// A remote ticket that carries our key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    /// What we sent last, by its own words.
    pub digest: Option<String>,
}

/// How the last request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a look-up: what carries our key, in the desk's order.
    Found(Vec<Found>),
    Created {
        id: String,
    },
    Updated,
    /// Timed out or cut off: it may have taken effect.
    Unclear,
    /// It did not take effect; later it may.
    Busy,
    /// It never will.
    Rejected {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Send(RemoteRequest),
    /// There, and up to date. `doubles`: further tickets with our key, which somebody made by hand or copied.
    Done {
        id: String,
        doubles: usize,
    },
    TryLater,
    GiveUp {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Start,
    LookingUp,
    Creating,
    Updating { id: String, doubles: usize },
    Ended,
}

/// One attempt at one ticket.
#[derive(Clone, Debug)]
pub struct Reconcile {
    ticket: RemoteTicket,
    fields: DeskFields,
    state: State,
    asked: u32,
}

impl Reconcile {
    pub fn new(ticket: RemoteTicket, fields: DeskFields) -> Self {
        Self {
            ticket,
            fields,
            state: State::Start,
            asked: 0,
        }
    }

    /// The first request: always a look-up, since an earlier attempt may have got through.
    ///
    /// # Panics
    /// When called twice.
    pub fn start(&mut self) -> Next {
        assert_eq!(self.state, State::Start, "an attempt starts once");
        self.look_up()
    }

    /// # Panics
    /// When no request is under way, or the answer is to another kind of request.
    pub fn step(&mut self, answer: Answer) -> Next {
        match (self.state.clone(), answer) {
            (State::LookingUp, Answer::Found(found)) => self.found(found),
            (State::Creating, Answer::Created { id }) => self.end(Next::Done { id, doubles: 0 }),
            (State::Updating { id, doubles }, Answer::Updated) => self.end(Next::Done { id, doubles }),
            (State::Creating | State::Updating { .. }, Answer::Unclear) => self.look_up(),
            (State::LookingUp, Answer::Unclear) => self.end(Next::TryLater),
            (State::LookingUp | State::Creating | State::Updating { .. }, Answer::Busy) => self.end(Next::TryLater),
            (State::LookingUp | State::Creating | State::Updating { .. }, Answer::Rejected { why }) => {
                self.end(Next::GiveUp { why })
            }
            (state, answer) => unreachable!("{answer:?} while {state:?}"),
        }
    }

    fn found(&mut self, found: Vec<Found>) -> Next {
        let doubles = found.len().saturating_sub(1);
        // The same one on every node and every day, whatever order the desk answers in.
        let Some(first) = found
            .into_iter()
            .min_by(|a, b| (a.id.len(), &a.id).cmp(&(b.id.len(), &b.id)))
        else {
            let request = self.ticket.create(&self.fields);
            return self.send(State::Creating, request);
        };
        let id = first.id;
        if first.digest.as_deref() == Some(self.ticket.digest().as_str()) {
            return self.end(Next::Done { id, doubles });
        }
        match self.ticket.update(&self.fields, &id) {
            Some(request) => self.send(State::Updating { id, doubles }, request),
            None => {
                let why = format!("the remote desk calls its ticket {id:?}, which cannot stand in a path");
                self.end(Next::GiveUp { why })
            }
        }
    }

    fn look_up(&mut self) -> Next {
        let request = self.ticket.look_up(&self.fields);
        self.send(State::LookingUp, request)
    }

    fn send(&mut self, state: State, request: RemoteRequest) -> Next {
        if self.asked == ASKS_MAX {
            return self.end(Next::TryLater);
        }
        self.asked += 1;
        self.state = state;
        Next::Send(request)
    }

    fn end(&mut self, with: Next) -> Next {
        self.state = State::Ended;
        with
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Method, RemoteKey};
    use expect_test::{Expect, expect};
    use hindcast_itsm::Priority;
    use hindcast_model::{TenantId, TicketId};
    use proptest::prelude::*;

    fn ticket(status: &str) -> RemoteTicket {
        RemoteTicket {
            key: RemoteKey::new(&TenantId::default(), TicketId(1), "partner"),
            title: "t".into(),
            text: "x".into(),
            priority: Priority::P3,
            status: status.into(),
        }
    }

    fn shown(next: &Next) -> String {
        match next {
            Next::Send(r) => format!("{:?} {}", r.method, r.target.replace(ticket("new").key.as_str(), "KEY")),
            Next::Done { id, doubles } => format!("done: {id}, doubles {doubles}"),
            Next::TryLater => "try later".into(),
            Next::GiveUp { why } => format!("give up: {why}"),
        }
    }

    /// Answers: `none`, `found 4 old`, `found 4 same 11 old`, `created 4`, `updated`, `unclear`, `busy`, `rejected`.
    fn check(answers: &str, expect: Expect) {
        let mut attempt = Reconcile::new(ticket("new"), DeskFields::default());
        let mut out = format!("start -> {}\n", shown(&attempt.start()));
        for line in answers.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<_> = line.split(' ').collect();
            let answer = match words[0] {
                "none" => Answer::Found(vec![]),
                "found" => {
                    let one = |pair: &[&str]| Found {
                        id: pair[0].into(),
                        digest: (pair[1] == "same").then(|| ticket("new").digest()),
                    };
                    Answer::Found(words[1..].chunks(2).map(one).collect())
                }
                "created" => Answer::Created { id: words[1].into() },
                "updated" => Answer::Updated,
                "unclear" => Answer::Unclear,
                "busy" => Answer::Busy,
                _ => Answer::Rejected {
                    why: "no such project".into(),
                },
            };
            out += &format!("{line} -> {}\n", shown(&attempt.step(answer)));
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_new_ticket_is_looked_up_then_created() {
        check(
            "
            none
            created 4
            ",
            expect![[r#"
                start -> Get /tickets?external_key=KEY
                none -> Post /tickets
                created 4 -> done: 4, doubles 0
            "#]],
        );
    }

    #[test]
    fn a_create_without_answer_is_looked_up_before_anything_else() {
        check(
            "
            none
            unclear
            found 4 same
            ",
            expect![[r#"
                start -> Get /tickets?external_key=KEY
                none -> Post /tickets
                unclear -> Get /tickets?external_key=KEY
                found 4 same -> done: 4, doubles 0
            "#]],
        );
    }

    #[test]
    fn a_known_ticket_is_updated_and_doubles_are_told() {
        check(
            "
            found 11 old 4 old
            unclear
            found 11 old 4 same
            ",
            expect![[r#"
                start -> Get /tickets?external_key=KEY
                found 11 old 4 old -> Patch /tickets/4
                unclear -> Get /tickets?external_key=KEY
                found 11 old 4 same -> done: 4, doubles 1
            "#]],
        );
    }

    #[test]
    fn an_attempt_ends() {
        check(
            "
            none
            unclear
            none
            unclear
            none
            unclear
            ",
            expect![[r#"
                start -> Get /tickets?external_key=KEY
                none -> Post /tickets
                unclear -> Get /tickets?external_key=KEY
                none -> Post /tickets
                unclear -> Get /tickets?external_key=KEY
                none -> Post /tickets
                unclear -> try later
            "#]],
        );
        check(
            "rejected",
            expect![[r#"
            start -> Get /tickets?external_key=KEY
            rejected -> give up: no such project
        "#]],
        );
    }

    /// A desk that loses answers, refuses when busy, and is asked by attempts that die in the middle.
    #[derive(Default)]
    struct RemoteDesk {
        tickets: Vec<String>,
    }

    impl RemoteDesk {
        fn take(&mut self, request: &RemoteRequest) -> Answer {
            let digest = |r: &RemoteRequest| {
                let body: serde_json::Value = serde_json::from_str(r.body.as_deref().unwrap()).unwrap();
                body["external_digest"].as_str().unwrap().to_owned()
            };
            match request.method {
                Method::Get => {
                    let found = self.tickets.iter().enumerate();
                    let found = found.map(|(n, d)| Found {
                        id: n.to_string(),
                        digest: Some(d.clone()),
                    });
                    Answer::Found(found.collect())
                }
                Method::Post => {
                    self.tickets.push(digest(request));
                    Answer::Created {
                        id: (self.tickets.len() - 1).to_string(),
                    }
                }
                Method::Patch => {
                    let id: usize = request.target.rsplit('/').next().unwrap().parse().unwrap();
                    self.tickets[id] = digest(request);
                    Answer::Updated
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_lost_there_is_one_remote_ticket_and_it_catches_up(
            attempts in prop::collection::vec(prop::collection::vec(0..6u8, 1..8), 0..12),
        ) {
            let mut desk = RemoteDesk::default();
            let faults = attempts.iter().map(Vec::as_slice).chain([[0u8; 8].as_slice()]);
            for (n, faults) in faults.enumerate() {
                let ticket = ticket(if n % 2 == 0 { "new" } else { "resolved" });
                let digest = ticket.digest();
                let mut attempt = Reconcile::new(ticket, DeskFields::default());
                let mut next = attempt.start();
                let mut asked = 0;
                for fault in faults.iter().chain(std::iter::repeat(&0)) {
                    let Next::Send(request) = &next else { break };
                    asked += 1;
                    next = match fault {
                        // The node dies before it sends, or before it hears the answer.
                        1 => break,
                        2 => { desk.take(request); break }
                        3 => { desk.take(request); attempt.step(Answer::Unclear) }
                        4 => attempt.step(Answer::Unclear),
                        5 => attempt.step(Answer::Busy),
                        _ => { let answer = desk.take(request); attempt.step(answer) }
                    };
                }
                prop_assert!(asked <= ASKS_MAX);
                prop_assert!(desk.tickets.len() <= 1, "made twice");
                if let Next::Done { doubles, .. } = next {
                    prop_assert_eq!((&desk.tickets, doubles), (&vec![digest], 0));
                }
            }
            prop_assert_eq!(desk.tickets.len(), 1, "the last attempt met no fault");
        }
    }
}
