//! One Parquet file of samples or of lines: schema, row groups, columns.
//!
//! Labels and metadata are `MAP<STRING, STRING>`: DuckDB, Spark and Trino all read the type natively and take a label with
//! `labels['job']`, where a JSON text would be parsed again by every query in its own dialect. What a map cannot have are
//! statistics per key, by which readers skip row groups: labels that are asked for often get a column of their own
//! (`promote`). `kind`, `domain` and `day` stand in the path alone: a column of the same name in the file is what
//! pyarrow refuses, and Spark and Hive do not write it either; `owner_kind` tells the domain of a file on its own.
//!
//! Promises: values bit for bit, NaN payloads included; text as it is; bytes that depend on the rows alone.

use super::{Kind, Precision};
use bytes::Bytes;
use hindcast_proto::v1;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::{WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, TypePtr};
use std::io::Write;
use std::sync::Arc;

/// Rows of a row group. DuckDB reads groups side by side; Spark and Trino split files at them.
pub const GROUP_ROWS_MAX: usize = 256 * 1024;
/// A row group is closed once its rows hold this much before packing; one row more may exceed it.
pub const GROUP_BYTES_FULL: usize = 32 << 20;
/// Rows whose labels are spelled out at once while a group is written.
const BATCH_ROWS: usize = 4096;
const METRIC_NAME: &str = "__name__";
const ZSTD_LEVEL: i32 = 3;
/// What a row takes beside its text.
const ROW_BYTES: usize = 64;
/// Columns that a promoted label must not be called.
const RESERVED: &[&str] = &[
    "ts",
    "metric",
    "labels",
    "value",
    "line",
    "metadata",
    "owner",
    "owner_kind",
    "kind",
    "domain",
    "day",
];

type Pair = (ByteArray, ByteArray);

/// A column of the schema, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Ts,
    Metric,
    LabelKeys,
    LabelValues,
    Promoted(usize),
    Value,
    Line,
    MetadataKeys,
    MetadataValues,
    Owner,
    OwnerKind,
}

/// What the files of one export have in common.
#[derive(Clone)]
pub struct Format {
    kind: Kind,
    precision: Precision,
    promote: Vec<String>,
    columns: Vec<Column>,
    schema: TypePtr,
    properties: WriterPropertiesPtr,
}

impl Format {
    /// `Err` names a label that cannot have a column of its own.
    pub fn new(kind: Kind, precision: Precision, promote: &[String]) -> std::result::Result<Self, String> {
        for (i, name) in promote.iter().enumerate() {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if RESERVED.contains(&name.as_str()) || promote[..i].contains(name) || name.is_empty() || !plain {
                return Err(format!(
                    "the label {name:?} cannot have a column of its own: it must be of letters, digits and _, given once, and none of {}",
                    RESERVED.join(", ")
                ));
            }
        }
        let unit = match precision {
            Precision::Ns => "NANOS",
            Precision::Us => "MICROS",
        };
        let map = |name: &str| {
            format!(
                "REQUIRED GROUP {name} (MAP) {{ REPEATED GROUP key_value {{ REQUIRED BYTE_ARRAY key (STRING); REQUIRED BYTE_ARRAY value (STRING); }} }}\n"
            )
        };
        let mut text = format!(
            "message {} {{\nREQUIRED INT64 ts (TIMESTAMP({unit},true));\n",
            kind.as_str()
        );
        let mut columns = vec![Column::Ts];
        if kind == Kind::Metrics {
            text += "REQUIRED BYTE_ARRAY metric (STRING);\n";
            columns.push(Column::Metric);
        }
        text += &map("labels");
        columns.extend([Column::LabelKeys, Column::LabelValues]);
        for (i, name) in promote.iter().enumerate() {
            text += &format!("OPTIONAL BYTE_ARRAY {name} (STRING);\n");
            columns.push(Column::Promoted(i));
        }
        match kind {
            Kind::Metrics => {
                text += "REQUIRED DOUBLE value;\n";
                columns.push(Column::Value);
            }
            Kind::Logs => {
                text += "REQUIRED BYTE_ARRAY line (STRING);\n";
                text += &map("metadata");
                columns.extend([Column::Line, Column::MetadataKeys, Column::MetadataValues]);
            }
        }
        text += "OPTIONAL BYTE_ARRAY owner (STRING);\nOPTIONAL BYTE_ARRAY owner_kind (STRING);\n}";
        columns.extend([Column::Owner, Column::OwnerKind]);
        let schema = parse_message_type(&text).map_err(|e| e.to_string())?;
        let zstd = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|e| e.to_string())?;
        let properties = WriterProperties::builder()
            .set_created_by(format!("hindcast {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(zstd))
            // Times of a scrape step evenly: deltas of deltas are near nothing, and a dictionary of them is not.
            .set_column_dictionary_enabled(ColumnPath::from("ts"), false)
            .set_column_encoding(ColumnPath::from("ts"), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(ColumnPath::from("line"), false)
            .set_max_row_group_row_count(Some(GROUP_ROWS_MAX))
            .build();
        Ok(Self {
            kind,
            precision,
            promote: promote.to_vec(),
            columns,
            schema: Arc::new(schema),
            properties: Arc::new(properties),
        })
    }

    fn ts(&self, at_ns: i64) -> i64 {
        match self.precision {
            Precision::Ns => at_ns,
            Precision::Us => at_ns.div_euclid(1000),
        }
    }
}

/// What all rows of a series or stream share.
struct Head {
    metric: ByteArray,
    labels: Vec<Pair>,
    promoted: Vec<Option<ByteArray>>,
    owner: Option<ByteArray>,
    owner_kind: Option<ByteArray>,
}

/// Rows that wait for their row group.
#[derive(Default)]
struct Buffer {
    ts: Vec<i64>,
    /// Place in `heads`.
    head: Vec<u32>,
    heads: Vec<Head>,
    values: Vec<f64>,
    lines: Vec<ByteArray>,
    metadata: Vec<Vec<Pair>>,
    bytes: usize,
}

/// A file being written.
pub struct Table<W: Write + Send> {
    format: Format,
    writer: SerializedFileWriter<W>,
    buffer: Buffer,
    rows: u64,
}

impl<W: Write + Send> Table<W> {
    pub fn new(format: Format, out: W) -> Result<Self> {
        let writer = SerializedFileWriter::new(out, format.schema.clone(), format.properties.clone())?;
        Ok(Self {
            format,
            writer,
            buffer: Buffer::default(),
            rows: 0,
        })
    }

    pub fn samples(&mut self, rows: v1::SampleRows) -> Result<()> {
        if rows.at_ns.len() != rows.values.len() {
            return Err(ParquetError::General(
                "as many times as values were expected".to_owned(),
            ));
        }
        self.begin(rows.labels, rows.owner);
        for (at, value) in rows.at_ns.into_iter().zip(rows.values) {
            self.row(at);
            self.buffer.values.push(value);
            self.flush_if_full()?;
        }
        Ok(())
    }

    pub fn lines(&mut self, rows: v1::LineRows) -> Result<()> {
        self.begin(rows.labels, rows.owner);
        for entry in rows.lines {
            self.row(entry.at_ns);
            let metadata = pairs(entry.metadata);
            self.buffer.bytes += entry.line.len() + pairs_bytes(&metadata);
            self.buffer.lines.push(text(entry.line));
            self.buffer.metadata.push(metadata);
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Writes what is left and the footer; rows of the file, and what it was written to.
    pub fn finish(mut self) -> Result<(u64, W)> {
        self.flush()?;
        let written: i64 = self.writer.flushed_row_groups().iter().map(|g| g.num_rows()).sum();
        assert_eq!(written, self.rows as i64, "a file holds the rows that were given");
        Ok((self.rows, self.writer.into_inner()?))
    }

    fn begin(&mut self, labels: Vec<v1::Label>, owner: Option<v1::RowsOwner>) {
        let (mut metric, mut kept) = (ByteArray::from(Vec::new()), vec![]);
        let mut promoted = vec![None; self.format.promote.len()];
        for (name, value) in pairs(labels) {
            if self.format.kind == Kind::Metrics && name.data() == METRIC_NAME.as_bytes() {
                metric = value;
                continue;
            }
            let place = self.format.promote.iter().position(|p| p.as_bytes() == name.data());
            if let Some(i) = place {
                promoted[i] = Some(value.clone());
            }
            kept.push((name, value));
        }
        let (owner, owner_kind) = owner.map(|o| (text(o.id), text(o.kind))).unzip();
        self.buffer.bytes += ROW_BYTES + pairs_bytes(&kept);
        self.buffer.heads.push(Head {
            metric,
            labels: kept,
            promoted,
            owner,
            owner_kind,
        });
    }

    fn row(&mut self, at_ns: i64) {
        self.buffer.ts.push(self.format.ts(at_ns));
        // Fits: a group has fewer heads than rows and messages.
        self.buffer.head.push(self.buffer.heads.len() as u32 - 1);
        self.buffer.bytes += ROW_BYTES;
        self.rows += 1;
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.buffer.ts.len() < GROUP_ROWS_MAX && self.buffer.bytes < GROUP_BYTES_FULL {
            return Ok(());
        }
        // The series that is being given goes on in the next group.
        let head = self.buffer.heads.pop();
        self.buffer.heads.extend(head.as_ref().map(Head::shared));
        self.flush()?;
        self.buffer.heads.extend(head);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.ts.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        for column in &self.format.columns {
            let mut writer = group
                .next_column()?
                .ok_or_else(|| ParquetError::General("the schema has fewer columns than the rows".to_owned()))?;
            buffer.write(*column, &mut writer)?;
            writer.close()?;
        }
        group.close()?;
        Ok(())
    }
}

impl Head {
    fn shared(&self) -> Self {
        Self {
            metric: self.metric.clone(),
            labels: self.labels.clone(),
            promoted: self.promoted.clone(),
            owner: self.owner.clone(),
            owner_kind: self.owner_kind.clone(),
        }
    }
}

impl Buffer {
    fn write(&self, column: Column, out: &mut SerializedColumnWriter<'_>) -> Result<()> {
        let head = |row: &u32| &self.heads[*row as usize];
        match column {
            Column::Ts => drop(out.typed::<Int64Type>().write_batch(&self.ts, None, None)?),
            Column::Value => drop(out.typed::<DoubleType>().write_batch(&self.values, None, None)?),
            Column::Line => drop(out.typed::<ByteArrayType>().write_batch(&self.lines, None, None)?),
            Column::Metric => {
                for rows in self.head.chunks(BATCH_ROWS) {
                    let names: Vec<ByteArray> = rows.iter().map(|r| head(r).metric.clone()).collect();
                    out.typed::<ByteArrayType>().write_batch(&names, None, None)?;
                }
            }
            Column::LabelKeys => self.map(out, self.head.iter().map(|r| &head(r).labels[..]), |p| &p.0)?,
            Column::LabelValues => self.map(out, self.head.iter().map(|r| &head(r).labels[..]), |p| &p.1)?,
            Column::MetadataKeys => self.map(out, self.metadata.iter().map(|m| &m[..]), |p| &p.0)?,
            Column::MetadataValues => self.map(out, self.metadata.iter().map(|m| &m[..]), |p| &p.1)?,
            Column::Promoted(i) => self.optional(out, |h| h.promoted[i].as_ref())?,
            Column::Owner => self.optional(out, |h| h.owner.as_ref())?,
            Column::OwnerKind => self.optional(out, |h| h.owner_kind.as_ref())?,
        }
        Ok(())
    }

    fn optional(&self, out: &mut SerializedColumnWriter<'_>, of: impl Fn(&Head) -> Option<&ByteArray>) -> Result<()> {
        for rows in self.head.chunks(BATCH_ROWS) {
            let (mut values, mut present) = (vec![], Vec::with_capacity(rows.len()));
            for row in rows {
                let value = of(&self.heads[*row as usize]);
                present.push(i16::from(value.is_some()));
                values.extend(value.cloned());
            }
            out.typed::<ByteArrayType>()
                .write_batch(&values, Some(&present), None)?;
        }
        Ok(())
    }

    /// Keys or values of a map: definition level 1 for an entry, 0 for an empty map; repetition level 1 from the second
    /// entry of a row on.
    fn map<'a>(
        &self,
        out: &mut SerializedColumnWriter<'_>,
        rows: impl Iterator<Item = &'a [Pair]>,
        of: impl Fn(&Pair) -> &ByteArray,
    ) -> Result<()> {
        let (mut values, mut defined, mut repeated) = (vec![], vec![], vec![]);
        let mut write = |values: &mut Vec<ByteArray>, defined: &mut Vec<i16>, repeated: &mut Vec<i16>| {
            let done = out
                .typed::<ByteArrayType>()
                .write_batch(values, Some(defined), Some(repeated));
            values.clear();
            defined.clear();
            repeated.clear();
            done
        };
        for entries in rows {
            if entries.is_empty() {
                defined.push(0);
                repeated.push(0);
            }
            for (i, entry) in entries.iter().enumerate() {
                values.push(of(entry).clone());
                defined.push(1);
                repeated.push(i16::from(i > 0));
            }
            if defined.len() >= BATCH_ROWS {
                write(&mut values, &mut defined, &mut repeated)?;
            }
        }
        if !defined.is_empty() {
            write(&mut values, &mut defined, &mut repeated)?;
        }
        Ok(())
    }
}

fn text(s: String) -> ByteArray {
    ByteArray::from(Bytes::from(s))
}

fn pairs(labels: Vec<v1::Label>) -> Vec<Pair> {
    labels.into_iter().map(|l| (text(l.name), text(l.value))).collect()
}

fn pairs_bytes(pairs: &[Pair]) -> usize {
    pairs.iter().map(|(k, v)| k.len() + v.len() + ROW_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, Row};
    use proptest::prelude::*;

    fn label(name: &str, value: &str) -> v1::Label {
        v1::Label {
            name: name.into(),
            value: value.into(),
        }
    }

    fn owner() -> v1::RowsOwner {
        v1::RowsOwner {
            id: "00112233445566778899aabbccddeeff".into(),
            kind: "host".into(),
            domain: "SMS".into(),
        }
    }

    fn format(kind: Kind) -> Format {
        Format::new(kind, Precision::Ns, &["job".to_owned()]).unwrap()
    }

    fn rows(file: Vec<u8>) -> Vec<Row> {
        let reader = SerializedFileReader::new(Bytes::from(file)).unwrap();
        reader.get_row_iter(None).unwrap().map(Result::unwrap).collect()
    }

    fn field<'a>(row: &'a Row, name: &str) -> &'a Field {
        row.get_column_iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn map(field: &Field) -> Vec<(String, String)> {
        let Field::MapInternal(map) = field else {
            panic!("{field:?} is no map")
        };
        let show = |f: &Field| match f {
            Field::Str(s) => s.clone(),
            other => panic!("{other:?} is no text"),
        };
        map.entries().iter().map(|(k, v)| (show(k), show(v))).collect()
    }

    fn time(field: &Field) -> i64 {
        match field {
            Field::Long(t) => *t,
            other => panic!("{other:?} is no time"),
        }
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_given_to_the_last_bit(
            series in prop::collection::vec(
                (prop::collection::btree_map("[a-z]{1,3}|job", ".{0,5}", 0..4), any::<bool>(),
                 prop::collection::vec((any::<i64>(), any::<u64>()), 0..20)),
                0..10),
        ) {
            let mut table = Table::new(format(Kind::Metrics), vec![]).unwrap();
            let mut expected = vec![];
            for (labels, owned, samples) in &series {
                let mut wire: Vec<v1::Label> = labels.iter().map(|(n, v)| label(n, v)).collect();
                wire.insert(0, label("__name__", "up"));
                table.samples(v1::SampleRows {
                    labels: wire,
                    owner: owned.then(owner),
                    at_ns: samples.iter().map(|s| s.0).collect(),
                    values: samples.iter().map(|s| f64::from_bits(s.1)).collect(),
                }).unwrap();
                expected.extend(samples.iter().map(|s| (labels, *owned, *s)));
            }
            let (count, file) = table.finish().unwrap();
            prop_assert_eq!(count as usize, expected.len());
            let found = rows(file);
            prop_assert_eq!(found.len(), expected.len());
            for (row, (labels, owned, (at, bits))) in found.iter().zip(expected) {
                prop_assert_eq!(time(field(row, "ts")), at);
                let Field::Double(value) = field(row, "value") else { panic!("no double") };
                prop_assert_eq!(value.to_bits(), bits);
                prop_assert_eq!(field(row, "metric"), &Field::Str("up".into()));
                let given: Vec<_> = labels.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
                prop_assert_eq!(map(field(row, "labels")), given);
                let job = labels.get("job").map_or(Field::Null, |v| Field::Str(v.clone()));
                prop_assert_eq!(field(row, "job"), &job);
                let kind = if owned { Field::Str("host".into()) } else { Field::Null };
                prop_assert_eq!(field(row, "owner_kind"), &kind);
            }
        }
    }

    #[test]
    fn lines_keep_their_text_and_metadata_over_many_row_groups() {
        let mut table = Table::new(format(Kind::Logs), vec![]).unwrap();
        let long = "ㄱ한글 ".repeat(30_000);
        let lines = (0..120).map(|i| v1::LogEntry {
            at_ns: 1_700_000_000_000_000_000 + i,
            line: format!("{i} {long}"),
            metadata: if i % 2 == 0 {
                vec![label("trace_id", &i.to_string())]
            } else {
                vec![]
            },
        });
        table
            .lines(v1::LineRows {
                labels: vec![label("job", "shop")],
                owner: None,
                lines: lines.collect(),
            })
            .unwrap();
        let (count, file) = table.finish().unwrap();
        assert_eq!(count, 120);
        let reader = SerializedFileReader::new(Bytes::from(file.clone())).unwrap();
        assert!(reader.num_row_groups() > 1, "one row group holds too much");
        for (i, row) in rows(file).iter().enumerate() {
            assert_eq!(time(field(row, "ts")), 1_700_000_000_000_000_000 + i as i64);
            assert_eq!(field(row, "line"), &Field::Str(format!("{i} {long}")));
            assert_eq!(map(field(row, "labels")), [("job".to_owned(), "shop".to_owned())]);
            let metadata = map(field(row, "metadata"));
            let expected: Vec<_> = (i % 2 == 0)
                .then(|| ("trace_id".to_owned(), i.to_string()))
                .into_iter()
                .collect();
            assert_eq!(metadata, expected);
        }
    }

    #[test]
    fn microseconds_are_rounded_down_also_before_1970() {
        let format = Format::new(Kind::Metrics, Precision::Us, &[]).unwrap();
        assert_eq!((format.ts(1_999), format.ts(-1)), (1, -1));
    }

    #[test]
    fn a_label_that_bears_the_name_of_a_column_gets_none_of_its_own() {
        for name in ["ts", "value", "domain", "", "a-b", "ㄱ"] {
            assert!(
                Format::new(Kind::Metrics, Precision::Ns, &[name.to_owned()]).is_err(),
                "{name}"
            );
        }
        let twice = ["job".to_owned(), "job".to_owned()];
        assert!(Format::new(Kind::Metrics, Precision::Ns, &twice).is_err());
    }
}
