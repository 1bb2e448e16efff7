//! Templates of `line_format` and `label_format`: Go's language as far as Loki's documentation uses it.
//!
//! Fields, pipelines, parentheses, literals, variables, `if`, `with`, `range`, and Loki's functions. `range` goes over
//! what `fromJson` gave, and over the labels, so that a template ends; how much one line may take is bounded all the same.

mod functions;
mod go_time;
mod parse;
mod value;

use crate::fields::Fields;
use functions::Function;
use hindcast_model::TimestampNs;
use std::collections::BTreeSet;
pub use value::Value;

/// Bytes of a template's text.
pub const TEMPLATE_BYTES_MAX: usize = 16 * 1024;
/// Blocks and parentheses in each other.
pub const TEMPLATE_DEPTH_MAX: usize = 32;
/// What one template may write for one line, in bytes; no text that a function makes is longer either.
pub const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Nodes and commands that one template may run for one line, and rounds of its `range`.
pub const TEMPLATE_STEPS_MAX: usize = 20_000;
/// Bytes of values that one template may copy for one line: what it holds at a time is less.
pub const TEMPLATE_WORK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What compiling a regex counts for that is not known before: a line may do it some dozens of times.
const REGEX_WORK_BYTES: usize = 128 * 1024;

/// A template made ready.
pub struct Template {
    nodes: Vec<Node>,
    /// `None`: it may look at any label.
    fields: Option<BTreeSet<String>>,
}

enum Node {
    Text(String),
    Show(Pipe),
    If {
        test: Pipe,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        of: Pipe,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        of: Pipe,
        each: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// `$a, $b := first | second …`
struct Pipe {
    variables: Vec<String>,
    /// `:=` and not `=`
    declares: bool,
    commands: Vec<Command>,
}

struct Command {
    terms: Vec<Term>,
    /// The first argument, when it is the text of a regex that the function wants.
    regex: Option<regex::Regex>,
}

enum Term {
    /// `.a.b`; empty: the dot itself.
    Field(Vec<String>),
    /// `$a.b`; `$` is the set of all labels.
    Variable(String, Vec<String>),
    Function(Function),
    Literal(Value),
    Pipe(Box<Pipe>, Vec<String>),
}

/// What a template sees of a line.
pub struct Sight<'a> {
    pub fields: &'a Fields,
    pub line: &'a [u8],
    pub at: TimestampNs,
    /// What `now` gives.
    pub now: TimestampNs,
}

impl Template {
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("the template has more than {TEMPLATE_BYTES_MAX} bytes"));
        }
        let nodes = parse::parse(text).map_err(|why| format!("the template {text:?} cannot be used: {why}"))?;
        let mut fields = Some(BTreeSet::new());
        nodes.iter().for_each(|n| n.collect(&mut fields));
        Ok(Self { nodes, fields })
    }

    /// The labels that it looks at. `None`: maybe all.
    pub fn fields(&self) -> Option<&BTreeSet<String>> {
        self.fields.as_ref()
    }

    /// Appends what the template gives. An error says why it gave nothing; then `out` is as it was.
    pub fn run(&self, sight: &Sight, out: &mut String) -> Result<(), String> {
        let start = out.len();
        let mut run = Run {
            sight,
            variables: vec![],
            dot: Value::Labels,
            out,
            start,
            steps: 0,
            work: 0,
        };
        let done = run.nodes(&self.nodes);
        if done.is_err() {
            out.truncate(start);
        }
        done
    }
}

impl Node {
    fn collect(&self, fields: &mut Option<BTreeSet<String>>) {
        let (pipe, blocks): (&Pipe, [&[Node]; 2]) = match self {
            Self::Text(_) => return,
            Self::Show(pipe) => (pipe, [&[], &[]]),
            Self::If {
                test: of,
                then,
                otherwise,
            }
            | Self::With { of, then, otherwise }
            | Self::Range {
                of,
                each: then,
                otherwise,
            } => (of, [then, otherwise]),
        };
        pipe.collect(fields);
        blocks.into_iter().flatten().for_each(|n| n.collect(fields));
    }
}

impl Pipe {
    fn collect(&self, fields: &mut Option<BTreeSet<String>>) {
        for term in self.commands.iter().flat_map(|c| &c.terms) {
            let path = match term {
                Term::Field(path) => path,
                Term::Variable(name, path) if name.is_empty() => path,
                Term::Pipe(pipe, _) => {
                    pipe.collect(fields);
                    continue;
                }
                Term::Variable(..) | Term::Function(_) | Term::Literal(_) => continue,
            };
            match (path.first(), fields.as_mut()) {
                (Some(name), Some(all)) => {
                    all.insert(name.clone());
                }
                (None, _) => *fields = None,
                (_, None) => {}
            }
        }
    }
}

struct Run<'a> {
    sight: &'a Sight<'a>,
    variables: Vec<(String, Value)>,
    dot: Value,
    out: &'a mut String,
    start: usize,
    steps: usize,
    work: usize,
}

impl Run<'_> {
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        match self.steps > TEMPLATE_STEPS_MAX {
            true => Err(format!("the template takes more than {TEMPLATE_STEPS_MAX} steps")),
            false => Ok(()),
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        self.work = self.work.saturating_add(bytes);
        match self.work > TEMPLATE_WORK_BYTES_MAX {
            true => Err(format!(
                "the template handles more than {TEMPLATE_WORK_BYTES_MAX} bytes of values"
            )),
            false => Ok(()),
        }
    }

    fn copied(&mut self, value: &Value) -> Result<Value, String> {
        self.charge(value.weight())?;
        Ok(value.clone())
    }

    fn nodes(&mut self, nodes: &[Node]) -> Result<(), String> {
        let variables = self.variables.len();
        for node in nodes {
            self.step()?;
            self.node(node)?;
            if self.out.len() - self.start > OUTPUT_BYTES_MAX {
                return Err(format!("the template writes more than {OUTPUT_BYTES_MAX} bytes"));
            }
        }
        self.variables.truncate(variables);
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), String> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Show(pipe) => self.show(pipe)?,
            Node::If { test, then, otherwise } => {
                let variables = self.variables.len();
                let holds = self.pipe(test)?.is_true();
                self.nodes(if holds { then } else { otherwise })?;
                self.variables.truncate(variables);
            }
            Node::With { of, then, otherwise } => {
                let variables = self.variables.len();
                let value = self.pipe(of)?;
                if value.is_true() {
                    self.inside(value, then)?;
                } else {
                    self.nodes(otherwise)?;
                }
                self.variables.truncate(variables);
            }
            Node::Range { of, each, otherwise } => self.range(of, each, otherwise)?,
        }
        Ok(())
    }

    fn inside(&mut self, dot: Value, nodes: &[Node]) -> Result<(), String> {
        let outer = std::mem::replace(&mut self.dot, dot);
        let done = self.nodes(nodes);
        self.dot = outer;
        done
    }

    fn range(&mut self, of: &Pipe, each: &[Node], otherwise: &[Node]) -> Result<(), String> {
        let (names, variables) = (&of.variables, self.variables.len());
        let items: Vec<(Value, Value)> = match self.commands(of)? {
            Value::List(items) => (0..).map(Value::Int).zip(items).collect(),
            Value::Map(map) => map.into_iter().map(|(k, v)| (Value::Text(k), v)).collect(),
            Value::Labels => {
                let labels = self.sight.fields.iter();
                let mut pairs: Vec<(&str, &str)> = labels.map(|(n, v, _)| (n, v)).collect();
                pairs.sort_unstable();
                let text = |t: &str| Value::Text(t.to_owned());
                pairs.into_iter().map(|(n, v)| (text(n), text(v))).collect()
            }
            Value::Nil => vec![],
            other => return Err(format!("range can't iterate over {}", other.shown())),
        };
        if items.is_empty() {
            return self.nodes(otherwise);
        }
        for (key, item) in items {
            self.step()?;
            match &names[..] {
                [] => {}
                [one] => {
                    let item = self.copied(&item)?;
                    self.variables.push((one.clone(), item));
                }
                [first, second, ..] => {
                    let item = self.copied(&item)?;
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item));
                }
            }
            self.inside(item, each)?;
            self.variables.truncate(variables);
        }
        Ok(())
    }

    /// A bare label goes from the line to the output without a copy in between.
    fn show(&mut self, pipe: &Pipe) -> Result<(), String> {
        if let [Command { terms, .. }] = &pipe.commands[..]
            && let [Term::Field(path)] = &terms[..]
            && let [name] = &path[..]
            && matches!(self.dot, Value::Labels)
            && pipe.variables.is_empty()
        {
            self.out.push_str(self.sight.fields.get(name).unwrap_or(""));
            return Ok(());
        }
        let value = self.pipe(pipe)?;
        if pipe.variables.is_empty() {
            value.show(self.sight.fields, self.out);
        }
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe) -> Result<Value, String> {
        let value = self.commands(pipe)?;
        for name in &pipe.variables {
            let copy = self.copied(&value)?;
            let known = self.variables.iter_mut().rev().find(|(n, _)| n == name);
            match known {
                Some((_, kept)) if !pipe.declares => *kept = copy,
                None if !pipe.declares => return Err(format!("undefined variable ${name}")),
                _ => self.variables.push((name.clone(), copy)),
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe) -> Result<Value, String> {
        let mut piped = None;
        for command in &pipe.commands {
            self.step()?;
            piped = Some(self.command(command, piped)?);
        }
        piped.ok_or_else(|| "an action without a value".to_owned())
    }

    fn command(&mut self, command: &Command, piped: Option<Value>) -> Result<Value, String> {
        let (first, rest) = command.terms.split_first().ok_or("an empty command")?;
        let Term::Function(function) = first else {
            return match rest.is_empty() && piped.is_none() {
                true => self.term(first),
                false => Err("can't give argument to non-function".to_owned()),
            };
        };
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for term in rest {
            arguments.push(self.term(term)?);
        }
        arguments.extend(piped);
        if function.takes_regex() && command.regex.is_none() {
            self.charge(REGEX_WORK_BYTES)?;
        }
        let value = functions::call(*function, arguments, command.regex.as_ref(), self.sight)?;
        match &value {
            Value::Text(text) if text.len() > OUTPUT_BYTES_MAX => {
                Err(format!("{} gives more than {OUTPUT_BYTES_MAX} bytes", function.name()))
            }
            _ => Ok(value),
        }
    }

    fn term(&mut self, term: &Term) -> Result<Value, String> {
        match term {
            Term::Field(path) => {
                let dot = std::mem::replace(&mut self.dot, Value::Nil);
                let found = self.walk(&dot, path);
                self.dot = dot;
                found
            }
            Term::Variable(name, path) if name.is_empty() => self.walk(&Value::Labels, path),
            Term::Variable(name, path) => {
                let known = self.variables.iter().rposition(|(n, _)| n == name);
                let place = known.ok_or_else(|| format!("undefined variable ${name}"))?;
                let value = std::mem::replace(&mut self.variables[place].1, Value::Nil);
                let found = self.walk(&value, path);
                self.variables[place].1 = value;
                found
            }
            Term::Function(f) => functions::call(*f, vec![], None, self.sight),
            Term::Literal(value) => self.copied(value),
            Term::Pipe(pipe, path) => {
                let value = self.pipe(pipe)?;
                match path.is_empty() {
                    true => Ok(value),
                    false => self.walk(&value, path),
                }
            }
        }
    }

    /// A copy of what stands at the end of the path, and of nothing before it.
    fn walk(&mut self, value: &Value, path: &[String]) -> Result<Value, String> {
        let mut value = value;
        for (i, name) in path.iter().enumerate() {
            value = match value {
                Value::Labels => {
                    let text = Value::Text(self.sight.fields.get(name).unwrap_or("").to_owned());
                    self.charge(text.weight())?;
                    return match path[i + 1..].first() {
                        None => Ok(text),
                        Some(name) => Err(format!("can't evaluate field {name} in {}", text.shown())),
                    };
                }
                Value::Map(map) => map.get(name).unwrap_or(&Value::Nil),
                Value::Nil => &Value::Nil,
                other => return Err(format!("can't evaluate field {name} in {}", other.shown())),
            };
        }
        self.copied(value)
    }
}

#[cfg(test)]
mod tests;
