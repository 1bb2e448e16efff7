//! Stages made ready, and a line on its way through them.
//!
//! Pure: the same line of the same stream always comes out the same. Buffers are kept between lines, so that a line
//! costs no allocation but for what it writes anew. Parsers make only the labels that somebody asks for later, when
//! that is known; of the errors of a line only [`TOO_MANY_LABELS`] depends on it.

use crate::fields::{ERROR, ERROR_DETAILS, EXTRACTED, FIELDS_BYTES_MAX, FIELDS_MAX, Fields};
use crate::filter::{LineTest, regex};
use crate::label_filter::LabelFilter;
use crate::pattern::Pattern;
use crate::stage::{LabelFormat, Pick, Stage};
use crate::template::{Sight, Template};
use crate::{json, logfmt};
use hindcast_model::{Labels, TimestampNs};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Stages of one pipeline.
pub const STAGES_MAX: usize = 64;
/// Labels that one stage names.
pub const NAMES_MAX: usize = 256;

/// What a line gets that its parser cannot read.
pub const JSON_ERROR: &str = "JSONParserErr";
pub const LOGFMT_ERROR: &str = "LogfmtParserErr";
pub const TEMPLATE_ERROR: &str = "TemplateFormatErr";
/// What a line gets with more than `FIELDS_MAX` labels.
pub const TOO_MANY_LABELS: &str = "TooManyLabels";

/// Labels that somebody asks for. `None`: all.
type Wanted = Option<BTreeSet<String>>;

enum Ready {
    Line(LineTest),
    Json(Wanted),
    JsonPaths(Vec<(String, Vec<json::Step>)>),
    Logfmt {
        strict: bool,
        keep_empty: bool,
        wanted: Wanted,
    },
    LogfmtKeys {
        strict: bool,
        /// Label and key.
        keys: Vec<(String, String)>,
    },
    Pattern(Pattern, Wanted),
    Regexp(regex::bytes::Regex, Wanted),
    Unpack(Wanted),
    Labels(LabelFilter),
    LineFormat(Template),
    LabelFormat(Vec<ReadyFormat>),
    Drop(Vec<Pick>),
    Keep(Vec<Pick>),
    Decolorize,
}

enum ReadyFormat {
    Rename { to: String, from: String },
    Template { label: String, template: Template },
}

/// Stages made ready. One at a time uses it: it has the buffers of the line that goes through.
pub struct Pipeline {
    stages: Vec<Ready>,
    now: TimestampNs,
    fields: Fields,
    /// The line, once a stage wrote it anew.
    line: Vec<u8>,
    /// Buffers.
    text: String,
    name: String,
}

/// A line that came through.
pub struct Passed<'a> {
    pub line: &'a [u8],
    pub fields: &'a mut Fields,
}

impl Pipeline {
    /// `wanted`: the labels that are asked for in the end. `now`: what templates take for it.
    pub fn new(stages: &[Stage], wanted: Option<BTreeSet<String>>, now: TimestampNs) -> Result<Self, String> {
        if stages.len() > STAGES_MAX {
            return Err(format!("a pipeline has more than {STAGES_MAX} stages"));
        }
        let mut wanted = wanted;
        let mut ready = Vec::with_capacity(stages.len());
        for stage in stages.iter().rev() {
            ready.push(ready_stage(stage, &mut wanted)?);
        }
        ready.reverse();
        Ok(Self {
            stages: ready,
            now,
            fields: Fields::default(),
            line: vec![],
            text: String::new(),
            name: String::new(),
        })
    }

    /// The lines that follow are of this stream.
    pub fn begin_stream(&mut self, labels: &Labels) {
        self.fields.begin_stream(labels);
    }

    /// The labels of the line that came through last.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Sends a line through. `None`: a stage let it fall.
    pub fn pass<'a>(
        &'a mut self,
        at: TimestampNs,
        line: &'a [u8],
        metadata: &[(String, String)],
    ) -> Option<Passed<'a>> {
        self.fields.begin_line(metadata);
        let mut rewritten = false;
        for stage in &self.stages {
            let now_line: &[u8] = if rewritten { &self.line } else { line };
            let fields = &mut self.fields;
            match stage {
                Ready::Line(test) => {
                    if !test.passes(now_line) {
                        return None;
                    }
                }
                Ready::Labels(filter) => {
                    if !filter.passes(fields) {
                        return None;
                    }
                }
                Ready::Json(wanted) => {
                    let (name, scratch) = (&mut self.name, &mut self.text);
                    let mut full = false;
                    let read = json::walk(now_line, name, &mut |name, value| {
                        full = full || !extract(fields, wanted, name, &value.shown(), scratch);
                    });
                    if let Err(why) = read {
                        fields.fail(JSON_ERROR, why);
                    } else if full {
                        too_many(fields);
                    }
                }
                Ready::JsonPaths(paths) => {
                    for (label, path) in paths {
                        match json::find(now_line, path) {
                            Ok(found) => {
                                let value = found.map_or_else(Default::default, |v| v.shown());
                                if !extract(fields, &None, label, &value, &mut self.text) {
                                    too_many(fields);
                                }
                            }
                            Err(why) => fields.fail(JSON_ERROR, why),
                        }
                    }
                }
                Ready::Logfmt {
                    strict,
                    keep_empty,
                    wanted,
                } => {
                    let (name, scratch) = (&mut self.name, &mut self.text);
                    let (mut full, mut broken) = (false, None);
                    logfmt::pairs(
                        now_line,
                        &mut |key, value| {
                            if value.is_empty() && !keep_empty {
                                return;
                            }
                            logfmt::push_name(name, key);
                            full = full || !extract(fields, wanted, name, &value, scratch);
                        },
                        &mut |why| {
                            broken.get_or_insert(why);
                            !strict
                        },
                    );
                    if let Some(why) = broken.filter(|_| *strict) {
                        fields.fail(LOGFMT_ERROR, &why);
                    } else if full {
                        too_many(fields);
                    }
                }
                Ready::LogfmtKeys { strict, keys } => {
                    let (name, scratch) = (&mut self.name, &mut self.text);
                    let (mut full, mut broken) = (false, None);
                    logfmt::pairs(
                        now_line,
                        &mut |key, value| {
                            logfmt::push_name(name, key);
                            let asked = keys
                                .iter()
                                .filter(|(_, k)| k.as_bytes() == key || k.as_str() == name.as_str());
                            for (label, _) in asked {
                                full = full || !extract(fields, &None, label, &value, scratch);
                            }
                        },
                        &mut |why| {
                            broken.get_or_insert(why);
                            !strict
                        },
                    );
                    if let Some(why) = broken.filter(|_| *strict) {
                        fields.fail(LOGFMT_ERROR, &why);
                    } else if full {
                        too_many(fields);
                    }
                }
                Ready::Pattern(pattern, wanted) => {
                    let (mut full, scratch) = (false, &mut self.text);
                    pattern.captures(now_line, &mut |name, value| {
                        full = full || !extract(fields, wanted, name, &json::text(value), scratch);
                    });
                    if full {
                        too_many(fields);
                    }
                }
                Ready::Regexp(regex, wanted) => {
                    if let Some(found) = regex.captures(now_line) {
                        let named = regex.capture_names().enumerate();
                        for (i, name) in named.filter_map(|(i, n)| Some((i, n?))) {
                            let value = found.get(i).map_or(&b""[..], |m| m.as_bytes());
                            if !extract(fields, wanted, name, &json::text(value), &mut self.text) {
                                too_many(fields);
                            }
                        }
                    }
                }
                Ready::Unpack(wanted) => {
                    let (mut full, mut entry, scratch) = (false, None, &mut self.text);
                    let name = &mut self.name;
                    let read = json::members(now_line, &mut |key, value| {
                        if !matches!(value, json::Value::Text(_)) {
                            return;
                        }
                        if key == "_entry" {
                            entry = Some(value.shown().into_owned());
                        } else {
                            name.clear();
                            json::push_name(name, key);
                            full = full || !extract(fields, wanted, name, &value.shown(), scratch);
                        }
                    });
                    if let Err(why) = read {
                        fields.fail(JSON_ERROR, why);
                    } else if full {
                        too_many(fields);
                    }
                    if let Some(entry) = entry {
                        self.line.clear();
                        self.line.extend_from_slice(entry.as_bytes());
                        rewritten = true;
                    }
                }
                Ready::LineFormat(template) => {
                    self.text.clear();
                    let sight = Sight {
                        fields,
                        line: now_line,
                        at,
                        now: self.now,
                    };
                    match template.run(&sight, &mut self.text) {
                        Ok(()) => {
                            self.line.clear();
                            self.line.extend_from_slice(self.text.as_bytes());
                            rewritten = true;
                        }
                        Err(why) => fields.fail(TEMPLATE_ERROR, &why),
                    }
                }
                Ready::LabelFormat(formats) => {
                    format_labels(formats, fields, now_line, at, self.now);
                }
                Ready::Drop(picks) => {
                    let drops = |name: &str, value: &str| picks.iter().any(|p| p.picks(name, value));
                    if fields.error().is_some_and(|e| drops(ERROR, e)) {
                        fields.forgive();
                    } else if fields.get(ERROR_DETAILS).is_some_and(|d| drops(ERROR_DETAILS, d)) {
                        fields.forget_details();
                    }
                    fields.retain(|name, value| !drops(name, value));
                }
                // An error is kept in any case.
                Ready::Keep(picks) => fields.retain(|name, value| picks.iter().any(|p| p.picks(name, value))),
                Ready::Decolorize => {
                    let plain = colors().replace_all(now_line, &b""[..]);
                    if let std::borrow::Cow::Owned(plain) = plain {
                        self.line = plain;
                        rewritten = true;
                    }
                }
            }
        }
        Some(Passed {
            line: if rewritten { &self.line } else { line },
            fields: &mut self.fields,
        })
    }
}

fn too_many(fields: &mut Fields) {
    let why = format!("the line has more than {FIELDS_MAX} labels, or more than {FIELDS_BYTES_MAX} bytes of them");
    fields.fail(TOO_MANY_LABELS, &why);
}

/// Sets what a parser found, if it is wanted. False: there are too many labels. `name` is a buffer.
fn extract(fields: &mut Fields, wanted: &Wanted, label: &str, value: &str, name: &mut String) -> bool {
    if label.is_empty() {
        return true;
    }
    // What is wrong with a line is ours to say, and not the line's.
    let label = if fields.is_given(label) || [ERROR, ERROR_DETAILS].contains(&label) {
        name.clear();
        name.push_str(label);
        name.push_str(EXTRACTED);
        name.as_str()
    } else {
        label
    };
    if wanted.as_ref().is_some_and(|w| !w.contains(label)) {
        return true;
    }
    fields.set(label, value)
}

/// Renames and templates in their order. Templates see the labels as they were before the first of them.
fn format_labels(formats: &[ReadyFormat], fields: &mut Fields, line: &[u8], at: TimestampNs, now: TimestampNs) {
    // What templates gave, until all have seen the labels.
    let mut made: Vec<(&str, Result<String, String>)> = vec![];
    for format in formats {
        if let ReadyFormat::Template { label, template } = format {
            let mut text = String::new();
            let sight = Sight { fields, line, at, now };
            let run = template.run(&sight, &mut text);
            made.push((label, run.map(|()| text)));
        } else if made.is_empty() {
            rename(format, fields);
        }
    }
    let mut made = made.into_iter();
    let mut seen = false;
    for format in formats {
        match format {
            ReadyFormat::Template { .. } => {
                seen = true;
                let Some((label, made)) = made.next() else { continue };
                match made {
                    Ok(text) if fields.set(label, &text) => {}
                    Ok(_) => too_many(fields),
                    Err(why) => fields.fail(TEMPLATE_ERROR, &why),
                }
            }
            ReadyFormat::Rename { .. } if seen => rename(format, fields),
            ReadyFormat::Rename { .. } => {}
        }
    }
}

fn rename(format: &ReadyFormat, fields: &mut Fields) {
    if let ReadyFormat::Rename { to, from } = format
        && let Some(value) = fields.get(from).map(str::to_owned)
    {
        fields.remove(from);
        if !fields.set(to, &value) {
            too_many(fields);
        }
    }
}

/// Escape sequences of terminals.
fn colors() -> &'static regex::bytes::Regex {
    static COLORS: OnceLock<regex::bytes::Regex> = OnceLock::new();
    COLORS.get_or_init(|| {
        // Of a sequence: what introduces it, parameters, and the letter that ends it; or a title up to its bell.
        let sequences = r"(?-u)\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()#][0-9A-Za-z]|[=>78A-Zc])";
        regex::bytes::Regex::new(sequences).expect("a regex that a test compiles")
    })
}

/// Makes a stage ready and adds the labels to `wanted` that it asks for, so that the stages before know.
fn ready_stage(stage: &Stage, wanted: &mut Wanted) -> Result<Ready, String> {
    let few = |names: usize| {
        let most = names <= NAMES_MAX;
        most.then_some(())
            .ok_or_else(|| format!("a stage names more than {NAMES_MAX} labels"))
    };
    let mut ask = |name: &str| {
        if let Some(wanted) = wanted {
            wanted.insert(name.to_owned());
        }
    };
    Ok(match stage {
        Stage::Line(filter) => Ready::Line(LineTest::new(filter)?),
        Stage::Json(extractions) if extractions.is_empty() => Ready::Json(wanted.clone()),
        Stage::Json(extractions) => {
            few(extractions.len())?;
            let paths = extractions.iter().map(|e| Ok((e.label.clone(), json::path(&e.path)?)));
            Ready::JsonPaths(paths.collect::<Result<_, String>>()?)
        }
        Stage::Logfmt {
            strict,
            keep_empty,
            extractions,
        } if extractions.is_empty() => Ready::Logfmt {
            strict: *strict,
            keep_empty: *keep_empty,
            wanted: wanted.clone(),
        },
        Stage::Logfmt {
            strict, extractions, ..
        } => {
            few(extractions.len())?;
            Ready::LogfmtKeys {
                strict: *strict,
                keys: extractions.iter().map(|e| (e.label.clone(), e.path.clone())).collect(),
            }
        }
        Stage::Pattern(pattern) => Ready::Pattern(Pattern::parser(pattern)?, wanted.clone()),
        Stage::Regexp(pattern) => {
            let regex = regex(pattern)?;
            if regex.capture_names().flatten().next().is_none() {
                return Err(format!(
                    "the regular expression {pattern:?} captures nothing by name: (?P<name>…)"
                ));
            }
            Ready::Regexp(regex, wanted.clone())
        }
        Stage::Unpack => Ready::Unpack(wanted.clone()),
        Stage::Labels(filter) => {
            filter.labels(&mut ask);
            Ready::Labels(filter.clone())
        }
        Stage::LineFormat(text) => {
            let template = Template::new(text)?;
            want_all(wanted, template.fields());
            Ready::LineFormat(template)
        }
        Stage::LabelFormat(formats) => {
            few(formats.len())?;
            Ready::LabelFormat(ready_formats(formats, wanted)?)
        }
        Stage::Drop(picks) | Stage::Keep(picks) => {
            few(picks.len())?;
            let matching = picks.iter().filter(|p| matches!(p, Pick::Matching(_)));
            matching.for_each(|p| ask(p.name()));
            if matches!(stage, Stage::Drop(_)) {
                Ready::Drop(picks.clone())
            } else {
                Ready::Keep(picks.clone())
            }
        }
        Stage::Decolorize => Ready::Decolorize,
    })
}

fn want_all(wanted: &mut Wanted, fields: Option<&BTreeSet<String>>) {
    match (wanted.as_mut(), fields) {
        (Some(wanted), Some(fields)) => wanted.extend(fields.iter().cloned()),
        _ => *wanted = None,
    }
}

fn ready_formats(formats: &[LabelFormat], wanted: &mut Wanted) -> Result<Vec<ReadyFormat>, String> {
    let mut ready: Vec<ReadyFormat> = vec![];
    let mut targets = BTreeSet::new();
    for format in formats {
        let (LabelFormat::Rename { to: target, .. } | LabelFormat::Template { label: target, .. }) = format;
        if matches!(target.as_str(), ERROR | ERROR_DETAILS) {
            return Err(format!("{target} cannot be formatted"));
        }
        if !targets.insert(target) {
            return Err(format!("the label {target} is formatted twice in one stage"));
        }
        ready.push(match format {
            LabelFormat::Rename { to, from } => {
                if let Some(wanted) = wanted {
                    wanted.insert(from.clone());
                }
                ReadyFormat::Rename {
                    to: to.clone(),
                    from: from.clone(),
                }
            }
            LabelFormat::Template { label, template } => {
                let template = Template::new(template)?;
                want_all(wanted, template.fields());
                ReadyFormat::Template {
                    label: label.clone(),
                    template,
                }
            }
        });
    }
    Ok(ready)
}

#[cfg(test)]
mod tests;
