//! `hindcast cert`: an authority of one cluster, and what it signs for nodes and clients.
//!
//! Files are PEM. Private keys are made here, readable by their owner only, and never shown.

use super::{Done, Failure};
use hindcast_env::Rng;
use hindcast_env::io::{SystemClock, os_rng};
use hindcast_model::NodeId;
use hindcast_node::certificate::{CertificateName, Holder, is_plain_name};
use hindcast_node::io::tls::{read_certificates, read_roots};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const CA: &str = "ca";
/// Clocks that differ a little still take a new certificate.
const BACKDATED: Duration = Duration::from_secs(3600);
const SECS_PER_DAY: u64 = 24 * 3600;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast cert ca                                         an authority for a new cluster, in ./certs
  hindcast cert node --id 1 --host node1.example.org       for each node, on the machine that has the authority's key
  hindcast cert client --name agent-web-1                  for each agent, and for each person
  hindcast server --id 1 --tls-ca certs/ca.pem --tls-cert certs/node-1.pem --tls-key certs/node-1-key.pem …
Keep ca-key.pem off the nodes. A node takes a new certificate in the same place without a restart.")]
pub struct CertArgs {
    #[command(subcommand)]
    action: CertAction,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The folder of the authority, where new files go, too.
    #[arg(long, default_value = "certs")]
    dir: PathBuf,
    /// Puts a new file in the place of an old one.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Subcommand)]
enum CertAction {
    /// Makes an authority: ca.pem for everybody, ca-key.pem for whoever signs.
    Ca {
        /// The cluster's id; a new one unless the cluster is there already (`hindcast cluster status -o json` shows it).
        #[arg(long)]
        cluster: Option<String>,
        /// How long it is good for.
        #[arg(long, default_value_t = 3650)]
        days: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Signs a node's certificate, for its peers and its clients.
    Node {
        /// The node's number.
        #[arg(long)]
        id: u64,
        /// Names and addresses under which clients reach it, beside localhost.
        #[arg(long, value_delimiter = ',')]
        host: Vec<String>,
        /// How long it is good for.
        #[arg(long, default_value_t = 365)]
        days: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Signs a certificate for an agent or a person.
    Client {
        /// Small letters, digits and dashes.
        #[arg(long)]
        name: String,
        /// How long it is good for.
        #[arg(long, default_value_t = 365)]
        days: u32,
        #[command(flatten)]
        place: Place,
    },
}

pub fn run(args: CertArgs) -> Done {
    let made = match args.action {
        CertAction::Ca { cluster, days, place } => make_ca(cluster, days, &place)?,
        CertAction::Node { id, host, days, place } => {
            if id == 0 {
                return Err(Failure::usage("--id must be at least 1; 0 means nobody"));
            }
            let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
            hosts.extend(host);
            sign(
                &place,
                &format!("node-{id}"),
                Holder::Node(NodeId(id)),
                hosts,
                &usages,
                days,
            )?
        }
        CertAction::Client { name, days, place } => {
            if !is_plain_name(&name) {
                return Err(Failure::usage(format!(
                    "the name {name:?} has other letters than a-z, 0-9 and -, or more than 64"
                )));
            }
            let file = format!("client-{name}");
            sign(
                &place,
                &file,
                Holder::Client(name),
                vec![],
                &[ExtendedKeyUsagePurpose::ClientAuth],
                days,
            )?
        }
    };
    println!("{}\n{}\n{}", made.name, made.cert.display(), made.key.display());
    Ok(ExitCode::SUCCESS)
}

/// What was made, and where it lies.
struct Made {
    name: CertificateName,
    cert: PathBuf,
    key: PathBuf,
}

fn failed(what: &str) -> impl Fn(rcgen::Error) -> Failure + '_ {
    move |e| Failure::no(format!("{what} cannot be made: {e}"))
}

/// Everything that follows from the cluster's id alone: so an issuer is made again from certificate and key.
fn ca_params(cluster: &str) -> Result<CertificateParams, Failure> {
    let name = CertificateName {
        cluster: cluster.to_owned(),
        holder: Holder::Ca,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(&format!("Hindcast cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri(&name)?];
    Ok(params)
}

fn distinguished(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn uri(name: &CertificateName) -> Result<SanType, Failure> {
    let text = name.to_string();
    Ok(SanType::URI(text.as_str().try_into().map_err(failed("the name"))?))
}

fn last(params: &mut CertificateParams, days: u32) {
    use hindcast_env::Clock;
    let now = Duration::from_nanos(SystemClock::new().now().0.max(0) as u64);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // To whole seconds: certificates know no parts of them.
    let from = Duration::from_secs(now.saturating_sub(BACKDATED).as_secs());
    params.not_before = epoch + from;
    params.not_after = epoch + Duration::from_secs(now.as_secs() + u64::from(days) * SECS_PER_DAY);
}

fn make_ca(cluster: Option<String>, days: u32, place: &Place) -> Result<Made, Failure> {
    let cluster = match cluster {
        Some(given) if is_plain_name(&given) => given,
        Some(given) => {
            return Err(Failure::usage(format!(
                "the cluster id {given:?} has other letters than a-z, 0-9 and -, or more than 64"
            )));
        }
        None => {
            let mut rng = os_rng().map_err(|e| Failure::no(format!("no randomness: {e}")))?;
            format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64())
        }
    };
    let key = KeyPair::generate().map_err(failed("a key"))?;
    let mut params = ca_params(&cluster)?;
    last(&mut params, days);
    let cert = params.self_signed(&key).map_err(failed("the authority"))?;
    let name = CertificateName {
        cluster,
        holder: Holder::Ca,
    };
    place.put(CA, name, &cert.pem(), &key)
}

fn sign(
    place: &Place,
    file: &str,
    holder: Holder,
    hosts: Vec<String>,
    usages: &[ExtendedKeyUsagePurpose],
    days: u32,
) -> Result<Made, Failure> {
    let ca = place.dir.join("ca.pem");
    let bad = |e: hindcast_node::io::tls::TlsError| {
        Failure::usage(format!("{e}; `hindcast cert ca` makes an authority in --dir"))
    };
    let authority = read_certificates(&ca).map_err(bad)?;
    let cluster = cluster_of(&authority[0]).ok_or_else(|| {
        Failure::usage(format!(
            "{} was not made by `hindcast cert ca`; let its own tools sign, with the URI hindcast://<cluster>/node/<n>",
            ca.display()
        ))
    })?;
    let ca_key = read_private(&place.dir.join("ca-key.pem"))?;
    let issuer = Issuer::new(ca_params(&cluster)?, ca_key);
    let name = CertificateName { cluster, holder };
    let mut params = CertificateParams::new(hosts).map_err(|e| Failure::usage(format!("--host: {e}")))?;
    params.distinguished_name = distinguished(file);
    params.subject_alt_names.push(uri(&name)?);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    last(&mut params, days);
    let key = KeyPair::generate().map_err(failed("a key"))?;
    let cert = params.signed_by(&key, &issuer).map_err(failed("the certificate"))?;
    check(&ca, cert.der(), usages)?;
    place.put(file, name, &cert.pem(), &key)
}

/// A certificate that its own authority does not vouch for helps nobody: its key is of another one, most likely.
fn check(ca: &Path, cert: &CertificateDer<'_>, usages: &[ExtendedKeyUsagePurpose]) -> Result<(), Failure> {
    if !usages.contains(&ExtendedKeyUsagePurpose::ServerAuth) {
        return check_client(ca, cert);
    }
    let roots = read_roots(ca).map_err(|e| Failure::usage(e.to_string()))?;
    let provider = rustls::crypto::ring::default_provider();
    let algorithms = provider.signature_verification_algorithms.all;
    let verified = ParsedCertificate::try_from(cert)
        .and_then(|c| verify_server_cert_signed_by_trust_anchor(&c, &roots, &[], UnixTime::now(), algorithms));
    verified.map_err(|e| not_vouched(ca, &e))
}

fn check_client(ca: &Path, cert: &CertificateDer<'_>) -> Result<(), Failure> {
    let roots = read_roots(ca).map_err(|e| Failure::usage(e.to_string()))?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
    let verifier = builder.build().map_err(|e| Failure::usage(e.to_string()))?;
    let verified = verifier.verify_client_cert(cert, &[], UnixTime::now());
    verified.map(|_| ()).map_err(|e| not_vouched(ca, &e))
}

fn not_vouched(ca: &Path, why: &rustls::Error) -> Failure {
    Failure::usage(format!(
        "{} does not vouch for what ca-key.pem beside it signs ({why}); put the right key there",
        ca.display()
    ))
}

fn cluster_of(ca: &CertificateDer<'_>) -> Option<String> {
    let named = hindcast_node::io::tls::names_in(ca);
    named.into_iter().find(|n| n.holder == Holder::Ca).map(|n| n.cluster)
}

#[allow(clippy::disallowed_methods, reason = "a command for files of the operator")]
fn read_private(path: &Path) -> Result<KeyPair, Failure> {
    let unusable = |why: String| Failure::usage(format!("the authority's key {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| unusable("is not PEM".to_owned()))?;
    KeyPair::from_pem(&text).map_err(|e| unusable(e.to_string()))
}

impl Place {
    /// Writes certificate and key. Each file appears whole.
    fn put(&self, file: &str, name: CertificateName, cert: &str, key: &KeyPair) -> Result<Made, Failure> {
        debug_assert!(!key.subject_public_key_info().is_empty());
        let path = |end: &str| self.dir.join(format!("{file}{end}"));
        let made = Made {
            name,
            cert: path(".pem"),
            key: path("-key.pem"),
        };
        let old = [&made.cert, &made.key].into_iter().find(|p| p.exists());
        if let Some(old) = old.filter(|_| !self.force) {
            return Err(Failure::usage(format!(
                "{} is there already; --force puts a new one in its place",
                old.display()
            )));
        }
        std::fs::create_dir_all(&self.dir).map_err(|e| Failure::usage(format!("{}: {e}", self.dir.display())))?;
        write_private(&made.key, &key.serialize_pem(), 0o600)?;
        write_private(&made.cert, cert, 0o644)?;
        Ok(made)
    }
}

/// A new file with its permissions from the first byte on, then in its place.
#[allow(clippy::disallowed_methods, reason = "a command for files of the operator")]
fn write_private(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let fresh = path.with_extension("pem.new");
    let write = || {
        let _ = std::fs::remove_file(&fresh);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|e| Failure::no(format!("{} cannot be written: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place(dir: &Path, force: bool) -> Place {
        Place {
            dir: dir.join("certs"),
            force,
        }
    }

    fn node(dir: &Path, force: bool) -> Done {
        let action = CertAction::Node {
            id: 2,
            host: vec!["node2.example.org".to_owned(), "10.0.0.2".to_owned()],
            days: 30,
            place: place(dir, force),
        };
        run(CertArgs { action })
    }

    fn ca(dir: &Path, force: bool) -> Done {
        let action = CertAction::Ca {
            cluster: Some("c-1".to_owned()),
            days: 30,
            place: place(dir, force),
        };
        run(CertArgs { action })
    }

    #[test]
    fn keys_are_readable_by_their_owner_only_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let missing = node(dir.path(), false).unwrap_err().message;
        assert!(missing.contains("hindcast cert ca"), "{missing}");
        ca(dir.path(), false).unwrap();
        node(dir.path(), false).unwrap();
        let client = CertAction::Client {
            name: "agent-1".to_owned(),
            days: 30,
            place: place(dir.path(), false),
        };
        run(CertArgs { action: client }).unwrap();
        let certs = dir.path().join("certs");
        for name in ["ca-key", "node-2-key", "client-agent-1-key"] {
            let mode = std::fs::metadata(certs.join(format!("{name}.pem")))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let named = |file: &str| {
            let read = read_certificates(&certs.join(file)).unwrap();
            hindcast_node::io::tls::names_in(&read[0])[0].to_string()
        };
        assert_eq!(named("node-2.pem"), "hindcast://c-1/node/2");
        assert_eq!(named("client-agent-1.pem"), "hindcast://c-1/client/agent-1");
        let before = read_certificates(&certs.join("node-2.pem")).unwrap();
        assert!(node(dir.path(), false).unwrap_err().message.contains("--force"));
        assert_eq!(before, read_certificates(&certs.join("node-2.pem")).unwrap());
        node(dir.path(), true).unwrap();
        assert_ne!(before, read_certificates(&certs.join("node-2.pem")).unwrap());
        let ends = hindcast_node::certificate::not_after_secs(&before[0]).unwrap();
        let in_days = (ends - UnixTime::now().as_secs() as i64) / 86_400;
        assert!((29..=30).contains(&in_days), "{in_days}");
    }

    #[test]
    fn a_key_of_another_authority_signs_nothing() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        ca(one.path(), false).unwrap();
        ca(two.path(), false).unwrap();
        let key = |d: &tempfile::TempDir| d.path().join("certs/ca-key.pem");
        std::fs::copy(key(&two), key(&one)).unwrap();
        let said = node(one.path(), false).unwrap_err().message;
        assert!(said.contains("does not vouch"), "{said}");
    }
}
