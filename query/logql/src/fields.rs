//! The labels of one line while it goes through the stages: those of its stream, its metadata, and what was parsed.
//!
//! Promises: of a name there is one value; a parsed name that the stream or the metadata has already gets
//! [`EXTRACTED`] behind it; between lines, memory is kept and nothing is allocated anew.

use hindcast_model::Labels;

/// Labels of one line, of all kinds. What a parser finds beyond them is left out, and the line gets an error.
pub const FIELDS_MAX: usize = 512;
/// Bytes of names and values that one line may come to, those of values that were set anew included; beyond them likewise.
pub const FIELDS_BYTES_MAX: usize = 1024 * 1024;
/// What a parsed name gets that the stream or the metadata has already.
pub const EXTRACTED: &str = "_extracted";
/// The virtual label that says what went wrong with a line, and the one that says how.
pub const ERROR: &str = "__error__";
pub const ERROR_DETAILS: &str = "__error_details__";

/// Where a label comes from. A label that stages made is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Stream,
    Metadata,
    Parsed,
}

/// A piece of the text that all fields share.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: Piece,
    value: Piece,
    origin: Origin,
}

#[derive(Clone, Debug, Default)]
pub struct Fields {
    text: String,
    fields: Vec<Field>,
    /// What the line came with: `_extracted` is decided by these, whatever became of them.
    given: Vec<Field>,
    /// How much of `given`, and of `text`, belongs to the stream.
    stream: (usize, usize),
    error: Option<&'static str>,
    details: String,
}

impl Fields {
    /// The lines that follow are of this stream.
    pub fn begin_stream(&mut self, labels: &Labels) {
        self.text.clear();
        self.given.clear();
        for (name, value) in labels.iter() {
            let field = self.field(name, value, Origin::Stream);
            self.given.push(field);
        }
        self.stream = (self.given.len(), self.text.len());
    }

    /// The next line, with its metadata. A name that the stream has already stays the stream's.
    pub fn begin_line(&mut self, metadata: &[(String, String)]) {
        self.given.truncate(self.stream.0);
        self.text.truncate(self.stream.1);
        for (name, value) in metadata.iter().filter(|(_, v)| !v.is_empty()) {
            if self.place(&self.given, name).is_none() {
                let field = self.field(name, value, Origin::Metadata);
                self.given.push(field);
            }
        }
        self.fields.clone_from(&self.given);
        self.error = None;
        self.details.clear();
    }

    fn piece(&mut self, text: &str) -> Piece {
        let start = self.text.len();
        self.text.push_str(text);
        let end = self.text.len();
        Piece { start, end }
    }

    fn field(&mut self, name: &str, value: &str, origin: Origin) -> Field {
        let (name, value) = (self.piece(name), self.piece(value));
        Field { name, value, origin }
    }

    fn read(&self, piece: Piece) -> &str {
        &self.text[piece.start..piece.end]
    }

    fn place(&self, of: &[Field], name: &str) -> Option<usize> {
        of.iter().position(|f| self.read(f.name) == name)
    }

    /// The value of a label; of the two virtual ones what is wrong with the line.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.place(&self.fields, name) {
            Some(i) => Some(self.read(self.fields[i].value)),
            None if name == ERROR => self.error,
            None if name == ERROR_DETAILS && self.error.is_some() => Some(&self.details),
            None => None,
        }
    }

    /// Sets a label, whatever it was before. False: the line has too many, or too large ones.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        if self.text.len() + name.len() + value.len() > FIELDS_BYTES_MAX {
            return false;
        }
        let value = self.piece(value);
        if let Some(i) = self.place(&self.fields, name) {
            self.fields[i].value = value;
            self.fields[i].origin = Origin::Parsed;
            return true;
        }
        if self.fields.len() >= FIELDS_MAX {
            return false;
        }
        let field = Field {
            name: self.piece(name),
            value,
            origin: Origin::Parsed,
        };
        self.fields.push(field);
        true
    }

    /// Whether the line came with this label.
    pub fn is_given(&self, name: &str) -> bool {
        self.place(&self.given, name).is_some()
    }

    pub fn remove(&mut self, name: &str) {
        if let Some(i) = self.place(&self.fields, name) {
            self.fields.remove(i);
        }
    }

    /// Keeps the labels for which `keep` says yes to name and value.
    pub fn retain(&mut self, keep: impl Fn(&str, &str) -> bool) {
        let text = &self.text;
        let read = |p: Piece| &text[p.start..p.end];
        self.fields.retain(|f| keep(read(f.name), read(f.value)));
    }

    /// What is wrong with the line. A later error takes the place of an earlier one.
    pub fn fail(&mut self, error: &'static str, details: &str) {
        self.error = Some(error);
        self.details.clear();
        self.details.push_str(details);
    }

    pub fn error(&self) -> Option<&'static str> {
        self.error
    }

    pub fn forgive(&mut self) {
        self.error = None;
        self.details.clear();
    }

    pub fn forget_details(&mut self) {
        self.details.clear();
    }

    /// All labels in no particular order, those of the error too. Empty values are absent labels.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, Origin)> + Clone {
        let own = self
            .fields
            .iter()
            .map(|f| (self.read(f.name), self.read(f.value), f.origin));
        let error = self.error.map(|e| (ERROR, e, Origin::Parsed));
        let details = (self.error.is_some()).then_some((ERROR_DETAILS, self.details.as_str(), Origin::Parsed));
        own.chain(error).chain(details).filter(|(_, v, _)| !v.is_empty())
    }

    /// The labels that `keep` says yes to.
    pub fn labels(&self, keep: impl Fn(&str, Origin) -> bool) -> Labels {
        let kept: Vec<(&str, &str)> = self
            .iter()
            .filter(|(n, _, o)| keep(n, *o))
            .map(|(n, v, _)| (n, v))
            .collect();
        Labels::from_sorted(kept)
    }
}
