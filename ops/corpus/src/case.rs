//! A case as it is written, and as what is sent and looked for.
//!
//! The first lines say what it is about. Then come sections; each begins with a line `--- NAME …` and takes the lines up to the next.

use crate::expand::{World, expand, expand_text};
use crate::{ROWS, fields};
use anyhow::{Context, Result, bail, ensure};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take unless the case says otherwise: none is missed, and a hang is found.
const WITHIN_DEFAULT: Duration = Duration::from_secs(10);

/// A folder of the corpus.
#[derive(Clone, Debug)]
pub struct Surface {
    pub name: String,
    /// Paths, gRPC methods and commands that it speaks for; `{name}` in a path is any name.
    pub routes: Vec<String>,
    /// Words that a case's head must hold, and the fuzz target that its input is for.
    pub decoders: Vec<(Vec<String>, String)>,
    /// Rows of which there are no cases, and why.
    pub without: Vec<(String, String)>,
    pub cases: Vec<Case>,
}

#[derive(Clone, Debug)]
pub struct Case {
    /// `surface/name`.
    pub name: String,
    pub about: String,
    pub row: String,
    pub send: Send,
    pub headers: Vec<(String, Vec<u8>)>,
    pub files: Vec<(String, Vec<u8>)>,
    body: Written,
    pub modifiers: Vec<Modifier>,
    /// Parameters of a query, encoded by the sender.
    pub params: Vec<(String, Vec<u8>)>,
    pub checks: Vec<Check>,
    pub within: Duration,
}

/// A body as it stands in the file: made when it is sent, since some are large.
#[derive(Clone, Debug)]
struct Written {
    form: String,
    lines: String,
    world: World,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Send {
    /// Method and target.
    Http(String, String),
    /// Bytes of a TCP connection to the client port.
    Raw,
    /// A method, as `/package.Service/Method`.
    Grpc(String),
    SyslogUdp,
    SyslogTcp,
    /// What the node finds when it scrapes this case's target.
    Scrape,
    /// Arguments of `hindcast`.
    Cli(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Modifier {
    Snappy,
    Gzip,
    Zstd,
    /// A gRPC message is sent without its five bytes of frame; the case writes its own.
    Unframed,
    /// In pieces, with a chunk's head for each.
    Chunked,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    /// An HTTP status, a gRPC code by name, or an exit code.
    Status(String),
    /// The answer has this text.
    Says(String),
    Silent(String),
    /// An expression of PromQL has this value now.
    Stored(String, String),
    /// A LogQL selector has so many lines.
    Lines(u64, String),
    /// A row of `/metrics` grows by so much.
    Counted(f64, String),
}

/// Sections with their arguments and lines, as they are written.
struct Section {
    name: String,
    argument: String,
    lines: String,
}

fn sections(text: &str) -> (String, Vec<Section>) {
    let (mut about, mut sections) = (String::new(), Vec::<Section>::new());
    for line in text.split_inclusive('\n') {
        if let Some(head) = line.strip_prefix("--- ") {
            let (name, argument) = head.trim_end().split_once(' ').unwrap_or((head.trim_end(), ""));
            sections.push(Section {
                name: name.into(),
                argument: argument.trim().into(),
                lines: String::new(),
            });
        } else {
            let lines = sections.last_mut().map_or(&mut about, |s| &mut s.lines);
            lines.push_str(line);
        }
    }
    (about.trim().to_owned(), sections)
}

impl Case {
    /// A file's text; `name` is `surface/name`.
    pub fn parse(name: &str, text: &str, now_ms: i64) -> Result<Self> {
        let id = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
        let world = World {
            now_ms,
            id: id.collect(),
        };
        let (about, sections) = sections(text);
        ensure!(!about.is_empty(), "the first lines say what the case is about");
        let mut case = Self {
            name: name.into(),
            about,
            row: String::new(),
            send: Send::Raw,
            headers: vec![],
            files: vec![],
            body: Written {
                form: "text".into(),
                lines: String::new(),
                world: world.clone(),
            },
            modifiers: vec![],
            params: vec![],
            checks: vec![],
            within: WITHIN_DEFAULT,
        };
        let mut has_send = false;
        for section in &sections {
            has_send |= section.name == "send";
            case.take(section, &world)
                .with_context(|| format!("--- {} {}", section.name, section.argument))?;
        }
        ensure!(
            ROWS.iter().any(|(row, _)| *row == case.row),
            "{:?} is no row; rows are {:?}",
            case.row,
            ROWS.iter().map(|(row, _)| *row).collect::<Vec<_>>()
        );
        ensure!(has_send, "there is no --- send");
        ensure!(
            !case.checks.is_empty(),
            "there is no --- expect: nothing would be checked"
        );
        Ok(case)
    }

    fn take(&mut self, section: &Section, world: &World) -> Result<()> {
        // The newline before the next section belongs to the file, not to what is sent.
        let lines = section.lines.strip_suffix('\n').unwrap_or(&section.lines);
        match section.name.as_str() {
            "row" => section.argument.clone_into(&mut self.row),
            "send" => {
                self.send = send(&expand_text(&section.argument, world)?)?;
                for line in lines.lines().filter(|l| !l.is_empty()) {
                    let (name, value) = line.split_once(':').context("a header is `Name: value`")?;
                    let value = expand(value.trim_start().as_bytes(), world)?;
                    self.headers.push((expand_text(name, world)?, value));
                }
            }
            "param" => self
                .params
                .push((section.argument.clone(), expand(lines.as_bytes(), world)?)),
            "file" => {
                let body = expand(section.lines.as_bytes(), world)?;
                self.files.push((section.argument.clone(), body));
            }
            "body" => {
                let (form, modifiers) = section.argument.split_once(',').unwrap_or((&section.argument, ""));
                ensure!(
                    ["text", "crlf", "fields"].contains(&form),
                    "a body is text, crlf or fields, not {form:?}"
                );
                form.clone_into(&mut self.body.form);
                lines.clone_into(&mut self.body.lines);
                for modifier in modifiers.split(',').map(str::trim).filter(|m| !m.is_empty()) {
                    self.modifiers.push(match modifier {
                        "snappy" => Modifier::Snappy,
                        "gzip" => Modifier::Gzip,
                        "zstd" => Modifier::Zstd,
                        "unframed" => Modifier::Unframed,
                        "chunked" => Modifier::Chunked,
                        other => bail!("{other:?} is done to no body"),
                    });
                }
            }
            "expect" => {
                for line in lines.lines().filter(|l| !l.is_empty()) {
                    self.expect(&expand_text(line, world)?)
                        .with_context(|| line.to_owned())?;
                }
            }
            other => bail!("a section {other:?} is not known"),
        }
        Ok(())
    }

    fn expect(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line.split_once(' ').context("a word, then what is expected")?;
        let two = || rest.split_once(' ').context("a number, then of what");
        self.checks.push(match word {
            "status" => Check::Status(rest.into()),
            "says" => Check::Says(rest.into()),
            "silent" => Check::Silent(rest.into()),
            "stored" => Check::Stored(two()?.0.into(), two()?.1.into()),
            "lines" => Check::Lines(two()?.0.parse()?, two()?.1.into()),
            "counted" => Check::Counted(two()?.0.parse()?, two()?.1.into()),
            "within" => {
                let secs = rest.strip_suffix('s').context("seconds, as 20s")?;
                self.within = Duration::from_secs(secs.parse()?);
                return Ok(());
            }
            other => bail!("{other:?} cannot be expected"),
        });
        Ok(())
    }

    /// Before it is compressed or framed.
    pub fn plain(&self) -> Result<Vec<u8>> {
        let Written { form, lines, world } = &self.body;
        match form.as_str() {
            "fields" => fields::encode(&expand_text(lines, world)?),
            "crlf" => expand(lines.replace('\n', "\r\n").as_bytes(), world),
            _ => expand(lines.as_bytes(), world),
        }
    }

    /// As it is sent.
    pub fn body(&self) -> Result<Vec<u8>> {
        let mut body = self.plain()?;
        for modifier in &self.modifiers {
            body = match modifier {
                Modifier::Snappy => snap::raw::Encoder::new().compress_vec(&body)?,
                Modifier::Gzip => {
                    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
                    gzip.write_all(&body)?;
                    gzip.finish()?
                }
                Modifier::Zstd => zstd::encode_all(&body[..], 3)?,
                Modifier::Unframed | Modifier::Chunked => body,
            };
        }
        Ok(body)
    }

    /// What decides for which decoder it is: how it is sent, its headers, what is done to its body.
    fn head(&self) -> String {
        let mut head = format!("{:?}", self.send);
        for (name, value) in &self.headers {
            head += &format!(" {name}: {}", String::from_utf8_lossy(value));
        }
        for modifier in &self.modifiers {
            head += &format!(" {modifier:?}");
        }
        head.to_lowercase()
    }

    /// What a decoder reads of it: the query, or the body, or the first file.
    pub fn input(&self) -> Result<Vec<u8>> {
        const QUERIES: [&str; 2] = ["query", "match[]"];
        let query = self.params.iter().find(|(n, _)| QUERIES.contains(&n.as_str()));
        match query.or(self.files.first()) {
            Some((_, bytes)) => Ok(bytes.clone()),
            None => self.plain(),
        }
    }
}

fn send(text: &str) -> Result<Send> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    Ok(match word {
        "raw" => Send::Raw,
        "grpc" => Send::Grpc(rest.into()),
        "syslog-udp" => Send::SyslogUdp,
        "syslog-tcp" => Send::SyslogTcp,
        "scrape" => Send::Scrape,
        "hindcast" => Send::Cli(words(rest)?),
        method if !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase()) && rest.starts_with('/') => {
            Send::Http(method.into(), rest.into())
        }
        _ => bail!("send METHOD /path, grpc /Service/Method, syslog-udp, syslog-tcp, scrape, raw, or hindcast ARGS"),
    })
}

/// Words of a command line; single quotes keep blanks.
fn words(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quoted) = (vec![], None::<String>, false);
    for c in text.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    ensure!(!quoted, "a quote without its end");
    words.extend(word);
    Ok(words)
}

impl Surface {
    fn parse(name: &str, text: &str) -> Result<Self> {
        let (about, sections) = sections(text);
        ensure!(!about.is_empty(), "the first lines say what the surface is");
        let mut surface = Self {
            name: name.into(),
            routes: vec![],
            decoders: vec![],
            without: vec![],
            cases: vec![],
        };
        for section in sections {
            let lines = section.lines.lines().map(str::trim).filter(|l| !l.is_empty());
            match section.name.as_str() {
                "routes" => surface.routes.extend(lines.map(str::to_owned)),
                "decoders" => {
                    for line in lines {
                        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                        let target = words.pop().context("words, then a target")?;
                        surface.decoders.push((words, target));
                    }
                }
                "without" => {
                    let why = section.lines.split_whitespace().collect::<Vec<_>>().join(" ");
                    ensure!(!why.is_empty(), "--- without {} must say why", section.argument);
                    surface.without.push((section.argument, why));
                }
                other => bail!("a section {other:?} is not known"),
            }
        }
        Ok(surface)
    }

    /// The fuzz target for a case's input: the first whose words are all in its head.
    pub fn decoder(&self, case: &Case) -> Option<&str> {
        let head = case.head();
        let fits = |words: &[String]| words.iter().all(|w| head.contains(&w.to_lowercase()));
        let found = self.decoders.iter().find(|(words, _)| fits(words));
        found.map(|(_, target)| target.as_str()).filter(|t| *t != "none")
    }
}

/// All surfaces and cases of a folder, by name. `now_ms`: Unix time in milliseconds, for cases that speak of now.
pub fn load(dir: &Path, now_ms: i64) -> Result<Vec<Surface>> {
    let mut surfaces = vec![];
    for entry in listed(dir)? {
        if !entry.is_dir() {
            continue;
        }
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = read(&entry.join("surface")).with_context(|| format!("corpus/{name}/surface"))?;
        let mut surface = Surface::parse(&name, &text).with_context(|| format!("corpus/{name}/surface"))?;
        for file in listed(&entry)? {
            if file.extension().is_none_or(|e| e != "case") {
                continue;
            }
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let case = Case::parse(&format!("{name}/{stem}"), &read(&file)?, now_ms);
            surface.cases.push(case.with_context(|| format!("{}", file.display()))?);
        }
        surfaces.push(surface);
    }
    ensure!(!surfaces.is_empty(), "no surface in {}", dir.display());
    Ok(surfaces)
}

fn listed(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths: Vec<_> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

#[allow(clippy::disallowed_methods, reason = "the corpus is files of the checkout")]
fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes).context("cases are UTF-8; other bytes are written as <<hex …>>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_is_written() {
        let text = "A label twice.\n--- row limits\n--- send POST /x\nContent-Type: a/b\n--- param query\nup{a=\"b\"}\n\
                    --- body fields, gzip\n1 \"<<id>>\"\n--- expect\nstatus 400\nsays twice\nstored 1 up{a=\"b\"}\nwithin 20s\n";
        let case = Case::parse("s/a-b", text, 0).unwrap();
        assert_eq!(case.send, Send::Http("POST".into(), "/x".into()));
        assert_eq!(case.headers, [("Content-Type".to_owned(), b"a/b".to_vec())]);
        assert_eq!(case.plain().unwrap(), b"\x0a\x05s_a_b");
        assert_eq!(case.body().unwrap()[..2], [0x1f, 0x8b]);
        assert_eq!(case.input().unwrap(), b"up{a=\"b\"}");
        assert_eq!(case.within, Duration::from_secs(20));
        assert_eq!(
            case.checks,
            [
                Check::Status("400".into()),
                Check::Says("twice".into()),
                Check::Stored("1".into(), "up{a=\"b\"}".into())
            ]
        );
        assert_eq!(words("a 'b c' ''").unwrap(), ["a", "b c", ""]);
    }

    #[test]
    fn a_case_that_checks_nothing_or_is_of_no_row_is_refused() {
        let refused = |text: &str| format!("{:#}", Case::parse("s/a", text, 0).unwrap_err());
        let whole = "About.\n--- row limits\n--- send raw\n";
        assert!(refused(whole).contains("nothing would be checked"));
        let of_no_row = "About.\n--- row what\n--- send raw\n--- expect\nstatus 200\n";
        assert!(refused(of_no_row).contains("is no row"));
        assert!(refused(&format!("{whole}--- expect\nshouts x\n")).contains("cannot be expected"));
        assert!(refused(&format!("{whole}--- what\n")).contains("is not known"));
    }
}
