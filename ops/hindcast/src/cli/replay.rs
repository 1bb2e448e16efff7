//! `hindcast replay INC-1`: plays a past incident in the terminal, or prints its frames or only its digest.
//!
//! Every frame is checked against its digest before it is shown. Exit code 1: the digest is not the one that
//! `--expect` names, or a frame does not have the digest that was sent with it.

use super::{Client, Done, Failure, plain};
use hindcast_model::{Domain, ResourceId, SpanNs, TimestampNs};
use hindcast_proto::v1::replay_client::ReplayClient;
use hindcast_proto::v1::{PlayRequest, PlayResponse};
use hindcast_query::io::replay::FRAME_WIRE_BYTES_MAX;
use hindcast_query::replay::frame::{Frame, Level, State};
use hindcast_query::replay::{Digest, ReplaySpec, chained, decode_frame, decode_spec};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast replay INC-1
  hindcast replay INC-1 --speed 60 --domain DBMS
  hindcast replay INC-1 --digest
      what two replays have in common when they are the same
  hindcast replay --from 2026-03-02T03:00:00Z --to 2026-03-02T03:30:00Z -o ndjson")]
pub struct ReplayArgs {
    #[command(flatten)]
    pub client: Client,
    /// The incident, like INC-1. Without one, --from and --to make the window, over everything.
    pub incident: Option<String>,
    /// Start of the window: RFC 3339, or seconds since 1970. Default: half an hour before the incident.
    #[arg(long, value_parser = instant)]
    pub from: Option<TimestampNs>,
    /// End of the window. Default: a quarter of an hour after the incident, or the cut.
    #[arg(long, value_parser = instant)]
    pub to: Option<TimestampNs>,
    /// Time between two frames, like 10s.
    #[arg(long, value_parser = span)]
    pub step: Option<SpanNs>,
    /// How many times faster than it happened.
    #[arg(long, default_value_t = 10.0, value_parser = speed)]
    pub speed: f64,
    /// A cut like CUT-1, or `corrected` for all that is known by now. Default: the cut that sealed the incident.
    #[arg(long, value_name = "CUT")]
    pub as_of: Option<String>,
    /// Only this domain: SMS, DBMS, APM or NMS. May be given more than once.
    #[arg(long, value_parser = domain)]
    pub domain: Vec<Domain>,
    /// Default: tui on a terminal, else ndjson.
    #[arg(short, long, value_enum)]
    pub output: Option<Shown>,
    /// Print the last digest and nothing else.
    #[arg(long)]
    pub digest: bool,
    /// The last digest that this replay must have; another one is exit code 1.
    #[arg(long, value_name = "DIGEST")]
    pub expect: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shown {
    /// Plays on the terminal.
    Tui,
    /// One JSON object per frame.
    Ndjson,
}

fn instant(text: &str) -> Result<TimestampNs, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok(TimestampNs::from_ms((seconds * 1e3) as i64));
    }
    let at: jiff::Timestamp = text
        .parse()
        .map_err(|_| format!("{text:?} is no time: write it like 2026-03-02T10:00:00Z, or in seconds since 1970"))?;
    Ok(TimestampNs::from_ms(at.as_millisecond()))
}

fn span(text: &str) -> Result<SpanNs, String> {
    let span = SpanNs::parse(text).filter(|s| *s > SpanNs::ZERO);
    span.ok_or_else(|| format!("{text:?} is no step: write it like 10s or 1m30s"))
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|s: &f64| (0.1..=10_000.0).contains(s));
    speed.ok_or_else(|| format!("{text:?} is no speed: use a number from 0.1 to 10000"))
}

fn domain(text: &str) -> Result<Domain, String> {
    Domain::parse(text).ok_or_else(|| format!("{text:?} is no domain: use SMS, DBMS, APM or NMS"))
}

pub async fn run(args: ReplayArgs) -> Done {
    if args.incident.is_none() && (args.from.is_none() || args.to.is_none()) {
        return Err(Failure::usage("name an incident, or give both --from and --to"));
    }
    let shown = args.output.unwrap_or_else(|| match std::io::stdout().is_terminal() {
        true => Shown::Tui,
        false => Shown::Ndjson,
    });
    let channel = args.client.connect().await?;
    let mut client = ReplayClient::new(channel).max_decoding_message_size(FRAME_WIRE_BYTES_MAX);
    let stream = client.play(request(&args)).await?.into_inner();
    let last = match (args.digest, shown) {
        (true, _) => last_digest(stream).await?,
        (false, Shown::Ndjson) => print_frames(stream).await?,
        (false, Shown::Tui) => match play(stream, args.speed).await? {
            Some(digest) => digest,
            // Left before the end: there is no digest to compare, and nothing went wrong.
            None if args.expect.is_none() => return Ok(ExitCode::SUCCESS),
            None => return Err(Failure::no("the replay was left before its end; nothing was compared")),
        },
    };
    if args.digest || shown == Shown::Tui {
        println!("{last}");
    }
    match args.expect {
        Some(expected) if !expected.trim().eq_ignore_ascii_case(&last.to_string()) => Err(Failure::no(format!(
            "the digest is {last}, not {expected}: this is not the same replay"
        ))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn request(args: &ReplayArgs) -> PlayRequest {
    let ms = |at: Option<TimestampNs>| at.map_or(0, TimestampNs::as_ms);
    PlayRequest {
        incident: args.incident.clone().unwrap_or_default(),
        from_ms: ms(args.from),
        to_ms: ms(args.to),
        step_ms: args.step.map_or(0, SpanNs::as_ms),
        as_of: args.as_of.clone().unwrap_or_default(),
        domains: args.domain.iter().map(|d| d.as_str().to_owned()).collect(),
        digest_only: args.digest,
    }
}

/// What a response holds, after its digest was checked.
#[derive(Clone, Debug, PartialEq)]
enum Played {
    Spec(ReplaySpec),
    Frame(Box<Frame>),
}

/// Follows the chain of digests.
#[derive(Default)]
struct Chain {
    digest: Option<Digest>,
    next: u64,
}

impl Chain {
    fn check(&mut self, response: &PlayResponse) -> Result<(Digest, Played), Failure> {
        let number = response.number;
        let sent = digest_of(response)?;
        let broken = |why: String| Failure::no(format!("frame {number} cannot be trusted: {why}"));
        if number != self.next {
            return Err(broken(format!("frame {} was due", self.next)));
        }
        let computed = chained(self.digest, &response.frame);
        if computed != sent {
            return Err(broken(format!("its digest is {computed}, {sent} was sent")));
        }
        let played = match number {
            0 => decode_spec(&response.frame).map(Played::Spec),
            _ => decode_frame(&response.frame).map(|f| Played::Frame(Box::new(f))),
        };
        self.digest = Some(sent);
        self.next += 1;
        Ok((sent, played.map_err(|e| broken(e.to_string()))?))
    }
}

fn digest_of(response: &PlayResponse) -> Result<Digest, Failure> {
    let bytes = response.digest.as_ref().try_into();
    bytes
        .map(Digest)
        .map_err(|_| Failure::no(format!("frame {} came without a digest", response.number)))
}

fn ended_early() -> Failure {
    Failure::unreachable("the replay ended before its last frame; try again")
}

async fn last_digest(mut stream: tonic::Streaming<PlayResponse>) -> Result<Digest, Failure> {
    while let Some(response) = stream.message().await? {
        if response.last {
            return digest_of(&response);
        }
    }
    Err(ended_early())
}

async fn print_frames(mut stream: tonic::Streaming<PlayResponse>) -> Result<Digest, Failure> {
    let mut chain = Chain::default();
    while let Some(response) = stream.message().await? {
        let (digest, played) = chain.check(&response)?;
        let line = json_line(digest, &played, response.last);
        if writeln!(std::io::stdout(), "{line}").is_err() {
            // Whoever read has seen enough.
            return Ok(digest);
        }
        if response.last {
            return Ok(digest);
        }
    }
    Err(ended_early())
}

fn json_line(digest: Digest, played: &Played, last: bool) -> String {
    let digest = digest.to_string();
    let value = match played {
        Played::Spec(spec) => serde_json::json!({"number": 0, "digest": digest, "last": last, "spec": spec}),
        Played::Frame(frame) => serde_json::json!({
            "number": frame.number,
            "at": rfc3339(frame.at),
            "digest": digest,
            "last": last,
            "frame": frame,
        }),
    };
    value.to_string()
}

fn rfc3339(at: TimestampNs) -> String {
    let stamp = jiff::Timestamp::from_nanosecond(i128::from(at.0));
    stamp.map_or_else(|_| at.to_string(), |t| t.to_string())
}

// ── The screen ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Frames that the screen keeps; a longer replay is cut, which the screen says.
const TAPE_FRAMES_MAX: usize = 20_000;
/// Frames on their way to the screen.
const QUEUE_FRAMES_MAX: usize = 64;
/// How often the screen is drawn while nothing is pressed.
const TICK: Duration = Duration::from_millis(50);

enum Arrival {
    Played(Digest, Played),
    Whole,
    Broken(String),
}

/// Plays on the terminal. `None`: left before the last frame had come.
async fn play(mut stream: tonic::Streaming<PlayResponse>, speed: f64) -> Result<Option<Digest>, Failure> {
    let (send, mut receive) = mpsc::channel(QUEUE_FRAMES_MAX);
    let screen = tokio::task::spawn_blocking(move || {
        let mut screen = Screen::new(speed);
        let mut terminal = ratatui::init();
        let shown = show(&mut terminal, &mut screen, &mut receive);
        ratatui::restore();
        shown.map(|()| screen)
    });
    let feed = async move {
        let mut chain = Chain::default();
        loop {
            let arrival = match stream.message().await {
                Ok(Some(response)) => match chain.check(&response) {
                    Ok((digest, played)) => Arrival::Played(digest, played),
                    Err(failure) => Arrival::Broken(failure.message),
                },
                Ok(None) => Arrival::Whole,
                Err(status) => Arrival::Broken(status.message().to_owned()),
            };
            let over = !matches!(arrival, Arrival::Played(..));
            // A closed queue: the screen was left.
            if send.send(arrival).await.is_err() || over {
                return;
            }
        }
    };
    let feed = tokio::spawn(feed);
    let screen = screen.await;
    feed.abort();
    let screen = match screen {
        Ok(Ok(screen)) => screen,
        Ok(Err(e)) => return Err(Failure::no(format!("the terminal cannot be drawn on: {e}"))),
        Err(_) => return Err(Failure::no("the screen failed; try -o ndjson")),
    };
    match screen.broken {
        Some(why) => Err(Failure::no(why)),
        None => Ok(screen.digest.filter(|_| screen.whole)),
    }
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    arrivals: &mut mpsc::Receiver<Arrival>,
) -> std::io::Result<()> {
    loop {
        while let Ok(arrival) = arrivals.try_recv() {
            screen.take(arrival);
        }
        terminal.draw(|f| screen.draw(f))?;
        if !event::poll(TICK)? {
            screen.tick(TICK);
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && screen.press(key.code)
        {
            return Ok(());
        }
    }
}

/// Everything that is drawn, as a function of what arrived and what was pressed.
struct Screen {
    spec: Option<ReplaySpec>,
    frames: Vec<Frame>,
    names: BTreeMap<ResourceId, String>,
    digest: Option<Digest>,
    whole: bool,
    broken: Option<String>,
    cut: bool,
    playhead: usize,
    playing: bool,
    speed: f64,
    /// Part of a step that has passed since the last frame, from 0 to 1.
    passed: f64,
}

impl Screen {
    fn new(speed: f64) -> Self {
        Self {
            spec: None,
            frames: vec![],
            names: BTreeMap::new(),
            digest: None,
            whole: false,
            broken: None,
            cut: false,
            playhead: 0,
            playing: true,
            speed,
            passed: 0.0,
        }
    }

    fn take(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Played(digest, played) => {
                self.digest = Some(digest);
                match played {
                    Played::Spec(spec) => self.spec = Some(spec),
                    Played::Frame(_) if self.frames.len() == TAPE_FRAMES_MAX => self.cut = true,
                    Played::Frame(frame) => {
                        for node in &frame.topology.resources {
                            self.names.insert(node.id, node.name.clone());
                        }
                        self.frames.push(*frame);
                    }
                }
            }
            Arrival::Whole => self.whole = true,
            Arrival::Broken(why) => self.broken = Some(why),
        }
    }

    fn tick(&mut self, elapsed: Duration) {
        let step = self.spec.as_ref().map_or(10.0, |s| s.step.0 as f64 / 1e9);
        if !self.playing {
            return;
        }
        self.passed += elapsed.as_secs_f64() * self.speed / step;
        let frames = self.passed.floor();
        self.passed -= frames;
        self.seek(frames as i64);
    }

    fn seek(&mut self, frames: i64) {
        let last = self.frames.len().saturating_sub(1) as i64;
        self.playhead = (self.playhead as i64).saturating_add(frames).clamp(0, last) as usize;
    }

    /// Whether to leave.
    fn press(&mut self, key: KeyCode) -> bool {
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char(' ') => self.playing = !self.playing,
            KeyCode::Left => self.seek(-1),
            KeyCode::Right => self.seek(1),
            KeyCode::PageUp => self.seek(-30),
            KeyCode::PageDown => self.seek(30),
            KeyCode::Home => self.seek(i64::MIN),
            KeyCode::End => self.seek(i64::MAX),
            KeyCode::Up => self.speed = (self.speed * 2.0).min(10_000.0),
            KeyCode::Down => self.speed = (self.speed / 2.0).max(0.1),
            _ => {}
        }
        if !matches!(key, KeyCode::Char(' ') | KeyCode::Up | KeyCode::Down) {
            // Who looks for a place wants to stay there.
            self.playing = false;
        }
        false
    }

    fn draw(&self, f: &mut ratatui::Frame) {
        let [head, lanes, foot, keys] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Fill(3),
            Constraint::Fill(2),
            Constraint::Length(1),
        ])
        .areas(f.area());
        f.render_widget(Paragraph::new(self.head()), head);
        let help = "space play/stop   ← → frame   PgUp PgDn 30 frames   Home End   ↑ ↓ speed   q leave";
        f.render_widget(Paragraph::new(help).style(Style::new().fg(Color::DarkGray)), keys);
        let Some(frame) = self.frames.get(self.playhead) else {
            f.render_widget(Paragraph::new("Loading the first frame …"), lanes);
            return;
        };
        let shares = Layout::vertical(frame.domains.iter().map(|_| Constraint::Fill(1))).split(lanes);
        for (i, domain) in frame.domains.iter().enumerate() {
            let block = Block::bordered().title(format!(" {} ", domain.domain));
            let inside = block.inner(shares[i]);
            f.render_widget(block, shares[i]);
            let rows = self.lane(frame, domain.domain, inside);
            f.render_widget(Paragraph::new(rows), inside);
        }
        let [logs, facts] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(foot);
        let titled = |title: &'static str, lines: Vec<Line<'static>>| {
            Paragraph::new(lines).block(Block::bordered().title(title))
        };
        f.render_widget(titled(" Logs ", log_lines(frame, logs)), logs);
        f.render_widget(titled(" Alerts, incidents, tickets, changes ", facts_of(frame)), facts);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let Some(spec) = &self.spec else { return vec![] };
        let incident = spec.incident.map_or("window".to_owned(), |i| i.to_string());
        let at = self.frames.get(self.playhead).map_or(spec.from, |f| f.at);
        let state = if self.playing { "▶" } else { "■" };
        let place = format!(
            "{incident}  {}  frame {}/{}  {state} {}×  as of {}",
            rfc3339(at),
            (self.playhead + 1).min(self.frames.len()),
            spec.frames(),
            self.speed,
            spec.as_of,
        );
        let red = Style::new().fg(Color::White).bg(Color::Red);
        let second = match (&self.broken, self.frames.get(self.playhead)) {
            (Some(why), _) => Line::styled(why.clone(), red),
            (None, Some(f)) if !f.incomplete.is_empty() => {
                let marks = f.incomplete.join("; ");
                Line::styled(format!("incomplete: {marks}"), Style::new().fg(Color::Yellow))
            }
            _ if self.cut => Line::raw(format!(
                "only the first {TAPE_FRAMES_MAX} frames are kept; use a longer step"
            )),
            _ if self.whole => Line::raw(self.digest.map_or_else(String::new, |d| format!("digest {d}"))),
            _ => Line::raw(format!("loaded {} of {}", self.frames.len(), spec.frames())),
        };
        vec![Line::styled(place, Style::new().add_modifier(Modifier::BOLD)), second]
    }

    /// Two rows per resource while there is room: its states over the window, and its most moving signal.
    fn lane(&self, frame: &Frame, domain: Domain, area: Rect) -> Vec<Line<'static>> {
        const GUTTER: usize = 24;
        const VALUE: usize = 30;
        let width = (area.width as usize).saturating_sub(GUTTER + VALUE).max(1);
        let here = frame.domains.iter().find(|d| d.domain == domain);
        let mut rows = vec![];
        for resource in here.into_iter().flat_map(|d| &d.resources) {
            let name = self.names.get(&resource.id).cloned().unwrap_or(resource.id.to_string());
            let mut row = vec![Span::raw(fit(&name, GUTTER))];
            row.extend(self.strip(domain, resource.id, width));
            row.push(Span::styled(
                format!("  {}", resource.state.as_str()),
                color(resource.state),
            ));
            rows.push(Line::from(row));
            if let Some((signal, object, values)) = self.moving(domain, resource.id) {
                let now = values.get(self.playhead).copied().flatten();
                let now = now.map_or("absent".to_owned(), |v| format!("{v:.4}"));
                let object = if object.is_empty() {
                    object
                } else {
                    format!("({object})")
                };
                let mut row = vec![Span::raw(fit("", GUTTER))];
                row.extend(self.spark(&values, width));
                row.push(Span::raw(format!("  {signal}{object} {now}")));
                rows.push(Line::from(row));
            }
        }
        let hidden = rows.len().saturating_sub(area.height as usize);
        if hidden > 0 {
            rows.truncate((area.height as usize).saturating_sub(1));
            rows.push(Line::styled(
                format!("… {} more rows", hidden + 1),
                Style::new().fg(Color::DarkGray),
            ));
        }
        rows
    }

    /// The frames that stand in one cell of a strip as wide as the whole window.
    fn cell(&self, column: usize, width: usize) -> std::ops::Range<usize> {
        let all = self
            .spec
            .as_ref()
            .map_or(self.frames.len(), |s| s.frames() as usize)
            .max(1);
        let from = column * all / width;
        let to = ((column + 1) * all / width).max(from + 1);
        from.min(self.frames.len())..to.min(self.frames.len())
    }

    fn strip(&self, domain: Domain, id: ResourceId, width: usize) -> Vec<Span<'static>> {
        let state_at = |n: usize| {
            let d = self.frames[n].domains.iter().find(|d| d.domain == domain)?;
            Some(d.resources.iter().find(|r| r.id == id)?.state)
        };
        let cells = (0..width).map(|column| {
            let cell = self.cell(column, width);
            let head = cell.contains(&self.playhead);
            let worst = cell.filter_map(state_at).max_by_key(|s| badness(*s));
            let (glyph, style) = match worst {
                None => (" ", Style::new()),
                Some(s) => (if s == State::NoData { "┄" } else { "━" }, color(s)),
            };
            if head {
                Span::styled("┃", style.add_modifier(Modifier::REVERSED))
            } else {
                Span::styled(glyph, style)
            }
        });
        cells.collect()
    }

    fn spark(&self, values: &[Option<f64>], width: usize) -> Vec<Span<'static>> {
        const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
        let there = || values.iter().flatten().copied().filter(|v| v.is_finite());
        let (low, high) = there().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let cells = (0..width).map(|column| {
            let cell = self.cell(column, width);
            let head = cell.contains(&self.playhead);
            let top = values[cell]
                .iter()
                .flatten()
                .copied()
                .filter(|v| v.is_finite())
                .reduce(f64::max);
            let bar = top.map_or(" ", |v| {
                let share = if high > low { (v - low) / (high - low) } else { 0.0 };
                BARS[((share * 7.0).round() as usize).min(7)]
            });
            let style = Style::new().fg(Color::Cyan);
            Span::styled(
                bar,
                if head {
                    style.add_modifier(Modifier::REVERSED)
                } else {
                    style
                },
            )
        });
        cells.collect()
    }

    /// The signal of a resource that moves most against its own size.
    fn moving(&self, domain: Domain, id: ResourceId) -> Option<(String, String, Vec<Option<f64>>)> {
        let mut columns: BTreeMap<(&str, &str), Vec<Option<f64>>> = BTreeMap::new();
        for (n, frame) in self.frames.iter().enumerate() {
            let resources = frame
                .domains
                .iter()
                .filter(|d| d.domain == domain)
                .flat_map(|d| &d.resources);
            for s in resources.filter(|r| r.id == id).flat_map(|r| &r.signals) {
                let column = columns.entry((s.name.as_str(), s.object.as_str())).or_default();
                column.resize(n, None);
                column.push(s.value);
            }
        }
        let motion = |values: &[Option<f64>]| {
            let there = values.iter().flatten().copied().filter(|v| v.is_finite());
            let (low, high) = there.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
            let size = low.abs().max(high.abs());
            if high > low && size > 0.0 {
                (high - low) / size
            } else {
                0.0
            }
        };
        // `max_by` keeps the last of equals: looked through backwards, that is the first by name.
        let most = columns
            .into_iter()
            .rev()
            .max_by(|a, b| motion(&a.1).total_cmp(&motion(&b.1)));
        most.map(|((name, object), mut values)| {
            values.resize(self.frames.len(), None);
            (name.to_owned(), object.to_owned(), values)
        })
    }
}

fn fit(name: &str, width: usize) -> String {
    let short: String = plain(name).chars().take(width - 1).collect();
    format!("{short:<width$}")
}

const fn badness(state: State) -> u8 {
    match state {
        State::Ok => 0,
        State::NoData => 1,
        State::Minor => 2,
        State::Major => 3,
        State::Critical => 4,
    }
}

const fn color(state: State) -> Style {
    Style::new().fg(match state {
        State::Ok => Color::Green,
        State::NoData => Color::DarkGray,
        State::Minor => Color::Yellow,
        State::Major => Color::LightRed,
        State::Critical => Color::Red,
    })
}

fn log_lines(frame: &Frame, area: Rect) -> Vec<Line<'static>> {
    let total: u64 = frame.logs.streams.iter().flat_map(|s| s.lines_by_level).sum::<u64>()
        + frame.logs.lines_left_out_by_level.iter().sum::<u64>();
    let room = (area.height as usize).saturating_sub(3);
    let line = |l: &hindcast_query::replay::frame::LineFrame| {
        let style = match l.level {
            Level::Fatal | Level::Error => Style::new().fg(Color::Red),
            Level::Warn => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        };
        let text = format!("{:<7} {}", l.level.as_str(), plain(&l.line));
        Line::styled(text, style)
    };
    let mut lines: Vec<Line> = frame.logs.lines.iter().rev().take(room).rev().map(line).collect();
    let shown = lines.len();
    lines.push(Line::styled(
        format!("{shown} of {total} lines in this step"),
        Style::new().fg(Color::DarkGray),
    ));
    lines
}

fn facts_of(frame: &Frame) -> Vec<Line<'static>> {
    let mut lines = vec![];
    for a in &frame.alerts {
        let severity = a.severity.map_or("", |s| s.as_str());
        let style = a.severity.map_or_else(Style::new, |s| color(State::of_severity(s)));
        let text = format!("{} {severity} {}", a.phase, plain(&a.id));
        lines.push(Line::styled(text, style));
    }
    for fact in frame.incidents.iter().chain(&frame.tickets) {
        lines.push(Line::raw(format!("{} {}", plain(&fact.object), plain(&fact.change))));
    }
    for change in &frame.changes {
        let text = format!("· {} {}", plain(&change.object), plain(&change.what));
        lines.push(Line::styled(text, Style::new().fg(Color::DarkGray)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use hindcast_model::{Kind, TenantId};
    use hindcast_query::replay::frame::{
        DomainFrame, LineFrame, ResourceFrame, ResourceNode, SignalFrame, StreamFrame,
    };
    use hindcast_query::replay::{AsOf, encode_frame, encode_spec};

    fn spec(frames: i64) -> ReplaySpec {
        let window = (TimestampNs(0), TimestampNs::from_secs(10 * (frames - 1)));
        let step = SpanNs::from_secs(10);
        let incident = "INC-1".parse().ok();
        ReplaySpec::new(
            TenantId::default(),
            incident,
            vec![],
            window,
            step,
            vec![Domain::Sms],
            AsOf::Corrected,
        )
        .unwrap()
    }

    fn frame(number: u64, state: State, value: f64) -> Frame {
        let id = ResourceId([1; 16]);
        let mut f = Frame::empty(number, TimestampNs::from_secs(10 * (number as i64 - 1)));
        f.domains = vec![DomainFrame {
            domain: Domain::Sms,
            resources: vec![ResourceFrame {
                id,
                state,
                signals: vec![SignalFrame {
                    name: "sms.load.1m".into(),
                    object: String::new(),
                    binding: 0,
                    value: Some(value),
                }],
            }],
        }];
        f.topology.resources = vec![ResourceNode {
            id,
            kind: Kind::Host,
            name: "web-1".into(),
        }];
        f.logs.streams = vec![StreamFrame {
            labels: hindcast_model::Labels::empty(),
            owner: Some(id),
            lines_by_level: [0, 1, 0, 0, 0, 0],
        }];
        f.logs.lines = vec![LineFrame {
            at: f.at,
            stream: 0,
            level: Level::Error,
            line: format!("line\u{1b}[2J {number}"),
            bytes: 6,
            metadata: vec![],
        }];
        f
    }

    fn tape(frames: u64) -> Screen {
        let mut screen = Screen::new(10.0);
        let digest = chained(None, b"");
        screen.take(Arrival::Played(digest, Played::Spec(spec(frames as i64))));
        for n in 1..=frames {
            let state = if n == frames { State::Critical } else { State::Ok };
            screen.take(Arrival::Played(
                digest,
                Played::Frame(Box::new(frame(n, state, n as f64))),
            ));
        }
        screen.take(Arrival::Whole);
        screen
    }

    fn drawn(screen: &Screen) -> String {
        let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(100, 24)).unwrap();
        terminal.draw(|f| screen.draw(f)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(100);
        rows.map(|r| r.iter().map(|c| c.symbol()).collect::<String>() + "\n")
            .collect()
    }

    #[test]
    fn the_screen_shows_the_moment_at_the_playhead() {
        let mut screen = tape(4);
        let first = drawn(&screen);
        assert!(first.contains("INC-1  1970-01-01T00:00:00Z  frame 1/4"), "{first}");
        assert!(
            first.contains("web-1") && first.contains("sms.load.1m 1.0000"),
            "{first}"
        );
        assert!(
            first.contains("error   line [2J 1"),
            "control characters never reach the terminal: {first}"
        );
        screen.press(KeyCode::End);
        let last = drawn(&screen);
        assert!(
            last.contains("00:00:30Z  frame 4/4") && last.contains("critical"),
            "{last}"
        );
        assert!(last.contains('▁') && last.contains('█'), "{last}");
    }

    #[test]
    fn keys_move_the_playhead_within_the_tape() {
        let mut screen = tape(4);
        screen.press(KeyCode::Left);
        assert_eq!((screen.playhead, screen.playing), (0, false));
        screen.press(KeyCode::Right);
        screen.press(KeyCode::PageDown);
        assert_eq!(screen.playhead, 3);
        screen.press(KeyCode::Home);
        screen.press(KeyCode::Char(' '));
        assert_eq!((screen.playhead, screen.playing), (0, true));
        assert!(screen.press(KeyCode::Char('q')));
    }

    #[test]
    fn playing_keeps_the_speed() {
        let mut screen = tape(50);
        // Ten times faster than life: a step of 10 s takes one second.
        for _ in 0..20 * 5 {
            screen.tick(TICK);
        }
        assert!((4..=5).contains(&screen.playhead), "{}", screen.playhead);
    }

    #[test]
    fn an_empty_tape_and_a_broken_one_are_drawn_too() {
        let mut screen = Screen::new(1.0);
        assert!(drawn(&screen).contains("Loading the first frame"));
        screen.take(Arrival::Played(chained(None, b""), Played::Spec(spec(3))));
        screen.take(Arrival::Broken("frame 1 cannot be trusted".into()));
        screen.tick(TICK);
        screen.press(KeyCode::End);
        assert!(drawn(&screen).contains("frame 1 cannot be trusted"));
    }

    #[test]
    fn a_frame_that_was_tampered_with_is_not_shown() {
        let spec_bytes = encode_spec(&spec(1));
        let frame_bytes = encode_frame(&frame(1, State::Ok, 1.0));
        let first = chained(None, &spec_bytes);
        let response = |number, frame: &[u8], digest: Digest| PlayResponse {
            number,
            frame: frame.to_vec().into(),
            digest: digest.0.to_vec().into(),
            last: number == 1,
        };
        let mut chain = Chain::default();
        let (_, played) = chain.check(&response(0, &spec_bytes, first)).unwrap();
        assert_eq!(played, Played::Spec(spec(1)));
        let second = chained(Some(first), &frame_bytes);
        let mut forged = frame_bytes.clone();
        *forged.last_mut().unwrap() ^= 1;
        let refused = chain.check(&response(1, &forged, second)).unwrap_err();
        assert!(refused.code == 1 && refused.message.starts_with("frame 1 cannot be trusted: its digest is"));
        assert!(
            chain
                .check(&response(2, &frame_bytes, second))
                .unwrap_err()
                .message
                .ends_with("frame 1 was due")
        );
        assert!(chain.check(&response(1, &frame_bytes, second)).is_ok());
    }

    #[test]
    fn a_json_line_holds_number_time_digest_and_content() {
        let digest = chained(None, b"");
        let played = Played::Frame(Box::new(frame(2, State::Major, f64::INFINITY)));
        let line: serde_json::Value = serde_json::from_str(&json_line(digest, &played, true)).unwrap();
        assert_eq!(
            (&line["number"], &line["at"]),
            (&2.into(), &"1970-01-01T00:00:10Z".into())
        );
        assert_eq!(line["digest"], digest.to_string());
        let resource = &line["frame"]["domains"][0]["resources"][0];
        assert_eq!(
            (&resource["state"], &resource["signals"][0]["value"]),
            (&"major".into(), &"+Inf".into())
        );
        assert_eq!(resource["id"], "01".repeat(16));
    }

    #[test]
    fn arguments_are_read_as_they_are_meant() {
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            args: ReplayArgs,
        }
        let parse = |words: &[&str]| Cli::try_parse_from([&["replay"], words].concat()).map(|c| c.args);
        let args = parse(&[
            "INC-1",
            "--from",
            "1970-01-01T00:00:05Z",
            "--to",
            "6.5",
            "--step",
            "1s",
            "--domain",
            "apm",
        ]);
        let sent = request(&args.unwrap());
        assert_eq!((sent.from_ms, sent.to_ms, sent.step_ms), (5_000, 6_500, 1_000));
        assert_eq!(
            (sent.incident.as_str(), sent.domains),
            ("INC-1", vec!["APM".to_owned()])
        );
        for bad in [
            ["--from", "noon"],
            ["--step", "0"],
            ["--domain", "web"],
            ["--speed", "nan"],
            ["-o", "xml"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
