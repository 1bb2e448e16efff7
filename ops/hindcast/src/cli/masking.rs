//! `hindcast masking preview|list`.

use super::{Client, Done, Failure, Output};
use crate::server::config::ServerArgs;
use crate::server::masking::{PREVIEW_BYTES_MAX, PreviewRequest, answer};
use bytes::Bytes;
use hindcast_masking::{Counts, Masking, TypeSettings};
use hindcast_model::TenantId;
use hindcast_node::io::tls::Dial;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as Http;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Bytes of an answer: a preview's text, and its matches.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const ANSWER_SPAN_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast masking list
      the types that are in force
  hindcast masking preview '홍길동 010-1234-5678, 서울시 성동구 성수이로 22'
      what would be stored of a line
  tail -100 app.log | hindcast masking preview -
      lines from standard input
  hindcast masking preview --type employee='EMP-\\d{6}' 'by EMP-123456' -o json
      a type that is not in force yet
  hindcast masking preview --config hindcast.toml 'line'
      what a server's file says, without a server")]
pub struct MaskingArgs {
    #[command(subcommand)]
    action: MaskingAction,
}

#[derive(Debug, clap::Subcommand)]
enum MaskingAction {
    /// What would be stored of a text, and what was found in it where. Nothing is stored.
    #[command(after_help = "Examples:
  hindcast masking preview '961219-1234567 called 010-1234-5678'
  tail -100 app.log | hindcast masking preview -
  hindcast masking preview --type employee='EMP-\\d{6}' 'by EMP-123456' -o json
  hindcast masking preview --config hindcast.toml 'hong@example.com'

Exit code 0: something was hidden, or nothing was to be; 2: wrong usage; 3: the server could not be reached.")]
    Preview {
        /// Lines; `-` for standard input.
        #[arg(required = true)]
        lines: Vec<String>,
        /// A type that is tried as well: NAME=PATTERN, a regular expression. May be given more than once.
        #[arg(long = "type", value_name = "NAME=PATTERN", value_parser = named_pattern)]
        types: Vec<TypeSettings>,
        /// A server's file whose [masking] is used; no server is asked then.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        client: Client,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// The types that are in force, and how often each was masked on this node.
    List {
        #[command(flatten)]
        client: Client,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

fn named_pattern(given: &str) -> Result<TypeSettings, String> {
    let (name, pattern) = given.split_once('=').ok_or("write NAME=PATTERN")?;
    Ok(TypeSettings {
        name: name.to_owned(),
        pattern: Some(pattern.to_owned()),
        ..TypeSettings::default()
    })
}

pub async fn run(args: MaskingArgs) -> Done {
    match args.action {
        MaskingAction::Preview {
            lines,
            types,
            config,
            client,
            output,
        } => {
            let lines = if lines == ["-"] { read_lines()? } else { lines };
            let shown = match config {
                Some(path) => {
                    let settings = ServerArgs::masking_of(&path).map_err(|e| Failure::usage(e.to_string()))?;
                    let masking = Masking::new(settings, &Counts::default());
                    let masking = masking.map_err(|e| Failure::usage(e.to_string()))?;
                    let request = PreviewRequest {
                        lines: Some(lines),
                        types,
                        ..PreviewRequest::default()
                    };
                    let tenant = TenantId::new(&client.tenant).map_err(|e| Failure::usage(e.to_string()))?;
                    answer(&masking, &tenant, request).map_err(Failure::usage)?
                }
                None => {
                    let body = json!({"lines": lines, "types": types}).to_string();
                    ask(&client, Method::POST, "/api/hindcast/v1/masking/preview", body).await?
                }
            };
            match output {
                Output::Json => println!("{shown}"),
                Output::Table => print!("{}", preview_table(&shown)),
            }
        }
        MaskingAction::List { client, output } => {
            let shown = ask(&client, Method::GET, "/api/hindcast/v1/masking", String::new()).await?;
            match output {
                Output::Json => println!("{shown}"),
                Output::Table => print!("{}", list_table(&shown)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read_lines() -> Result<Vec<String>, Failure> {
    let mut bytes = vec![];
    let most = PREVIEW_BYTES_MAX as u64;
    let read = std::io::stdin().lock().take(most + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::usage(format!("standard input cannot be read: {e}")))?;
    if bytes.len() as u64 > most {
        return Err(Failure::usage(format!(
            "standard input has more than the {most} bytes of one preview; send some of its lines"
        )));
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(str::to_owned).collect())
}

pub(super) async fn ask(client: &Client, method: Method, path: &str, body: String) -> Result<Value, Failure> {
    let dial = client.tls.dial([client.endpoint.as_str()]);
    let dial = dial.map_err(|e| Failure::usage(e.to_string()))?;
    let http: Http<Dial, Full<Bytes>> = Http::builder(TokioExecutor::new()).build(dial);
    let endpoint = client.endpoint.trim_end_matches('/');
    let request = Request::builder()
        .method(method)
        .uri(format!("{endpoint}{path}"))
        .header("content-type", "application/json")
        .header(hindcast_proto::edge::TENANT_KEY, &client.tenant)
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| Failure::usage(format!("{endpoint:?} cannot be asked: {e}")))?;
    let unreachable = |why: String| {
        Failure::unreachable(format!(
            "cannot reach {endpoint}: {why}; is `hindcast server` running there?"
        ))
    };
    let asked = tokio::time::timeout(ANSWER_SPAN_MAX, http.request(request)).await;
    let response = asked
        .map_err(|_| unreachable("no answer in time".to_owned()))?
        .map_err(|e| unreachable(crate::tls::why(&e)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| unreachable(e.to_string()))?.to_bytes();
    let answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok(answer);
    }
    let told = answer["message"]
        .as_str()
        .map_or_else(|| status.to_string(), str::to_owned);
    Err(match status.is_client_error() {
        true => Failure::usage(told),
        false => Failure::unreachable(told),
    })
}

/// The lines as they would be stored; under each, what was found in it.
fn preview_table(shown: &Value) -> String {
    let mut out = String::new();
    let none = vec![];
    for line in shown["lines"].as_array().unwrap_or(&none) {
        out += line["masked"].as_str().unwrap_or_default();
        out.push('\n');
        for m in line["matches"].as_array().unwrap_or(&none) {
            let name = m["type"].as_str().unwrap_or_default();
            let why = match m["unsearched"] == true {
                true => ", hidden whole: its pattern reads this line too often to be searched",
                false => "",
            };
            out += &format!("  {name}: characters {} to {}{why}\n", m["start"], m["end"]);
        }
    }
    if let Some(more @ 1..) = shown["not_listed"].as_u64() {
        out += &format!("and {more} more\n");
    }
    let tenant = shown["tenant"].as_str().unwrap_or_default();
    let exempt: Vec<_> = shown["exempt"].as_array().unwrap_or(&none).iter().collect();
    if shown["on"] == false {
        out += "masking is off: lines are stored as they come\n";
    } else if shown["applies"] == false && exempt.is_empty() {
        out += "no type is on: lines are stored as they come\n";
    } else if shown["applies"] == false {
        out += &format!("tenant {tenant} is exempt from all types: its lines are stored as they come\n");
    } else if !exempt.is_empty() {
        let names: Vec<_> = exempt.iter().filter_map(|e| e.as_str()).collect();
        out += &format!("tenant {tenant} is exempt from {}\n", names.join(", "));
    }
    out
}

fn list_table(shown: &Value) -> String {
    let mut out = String::new();
    let none = vec![];
    if shown["on"] == false {
        out += "masking is off: lines are stored as they come\n";
    }
    for t in shown["types"].as_array().unwrap_or(&none) {
        let text = |key: &str| t[key].as_str().unwrap_or_default().to_owned();
        let on = if t["on"] == true { "on " } else { "off" };
        let finds = if t["shipped"] == true {
            text("finds")
        } else {
            text("pattern")
        };
        let keeps = match (t["keeps"].as_str(), t["keep_first"].as_u64(), t["keep_last"].as_u64()) {
            (Some(keeps), ..) => keeps.to_owned(),
            (None, first, last) => format!("first {}, last {}", first.unwrap_or(0), last.unwrap_or(0)),
        };
        out += &format!(
            "{:<10} {on}  masked {:>8}  keeps {keeps}: {finds}\n",
            text("name"),
            t["masked"].as_u64().unwrap_or(0)
        );
    }
    for e in shown["exempt"].as_array().unwrap_or(&none) {
        let types: Vec<&str> = e["types"]
            .as_array()
            .unwrap_or(&none)
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let what = if types.is_empty() {
            "all types".to_owned()
        } else {
            types.join(", ")
        };
        out += &format!(
            "tenant {} is exempt from {what}\n",
            e["tenant"].as_str().unwrap_or_default()
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use hindcast_masking::{Exemption, Settings};

    fn preview_of(settings: Settings, lines: &[&str]) -> String {
        let masking = Masking::new(settings, &Counts::default()).unwrap();
        let request = PreviewRequest {
            lines: Some(lines.iter().map(|l| (*l).to_owned()).collect()),
            ..PreviewRequest::default()
        };
        preview_table(&answer(&masking, &TenantId::new("lab").unwrap(), request).unwrap())
    }

    #[test]
    fn a_preview_reads_like_this() {
        let line = "홍길동 010-1234-5678 hong@example.com";
        let exempt = |types: &[&str]| Settings {
            exempt: vec![Exemption {
                tenant: "lab".into(),
                types: types.iter().map(|t| (*t).to_owned()).collect(),
            }],
            ..Settings::default()
        };
        let off = Settings {
            on: false,
            ..Settings::default()
        };
        let slow = Settings {
            types: vec![named_pattern("slow=.*[^A-Z]|[A-Z]").unwrap()],
            ..Settings::default()
        };
        let shown = [
            preview_of(Settings::default(), &[line, "nothing"]),
            preview_of(exempt(&["email"]), &[line]),
            preview_of(exempt(&[]), &[line]),
            preview_of(off, &[line]),
        ];
        expect![[r#"
            홍길동 010-****-5678 ho**@example.com
              phone: characters 4 to 17
              email: characters 18 to 34
            nothing
            --
            홍길동 010-****-5678 hong@example.com
              phone: characters 4 to 17
            tenant lab is exempt from email
            --
            홍길동 010-1234-5678 hong@example.com
            tenant lab is exempt from all types: its lines are stored as they come
            --
            홍길동 010-1234-5678 hong@example.com
            masking is off: lines are stored as they come
        "#]]
        .assert_eq(&shown.join("--\n"));
        let table = preview_of(slow, &["A".repeat(4000).as_str()]);
        let last = table.lines().last().unwrap();
        assert!(
            last.ends_with("to 4000, hidden whole: its pattern reads this line too often to be searched"),
            "{last}"
        );
    }

    #[test]
    fn types_in_force_read_like_this() {
        let settings = Settings {
            types: vec![named_pattern("employee=EMP-\\d{6}").unwrap()],
            exempt: vec![Exemption {
                tenant: "team-a".into(),
                types: vec![],
            }],
            ..Settings::default()
        };
        let masking = Masking::new(settings, &Counts::default()).unwrap();
        let types: Vec<Value> = masking
            .all()
            .types()
            .map(|t| crate::server::masking::type_json(&t))
            .collect();
        let shown = json!({"on": true, "types": types, "exempt": masking.settings().exempt});
        expect![[r#"
            rrn        on   masked        0  keeps the birthday: resident registration numbers, also of foreigners, with or without the hyphen
            phone      on   masked        0  keeps the first and the last block: Korean mobile and landline numbers, 070, 050x and +82, in blocks or in one
            email      on   masked        0  keeps up to two letters, and the domain: e-mail addresses
            card       on   masked        0  keeps the first six and the last four digits: card numbers of 13 to 19 digits, in blocks of four or in one
            address    on   masked        0  keeps province, city and district: Korean addresses by road or by lot, from the district on
            passport   on   masked        0  keeps the letter: numbers of Korean passports, of both forms
            employee   on   masked        0  keeps first 0, last 0: EMP-\d{6}
            tenant team-a is exempt from all types
        "#]].assert_eq(&list_table(&shown));
    }
}
