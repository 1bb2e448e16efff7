//! Handshakes over real sockets, with certificates made for each test.

use super::*;
use crate::io::peers::{Peers, accept_peers, channel_to, peer_service};
use bytes::Bytes;
use expect_test::{Expect, expect};
use hindcast_env::SimDisk;
use hindcast_env::io::SystemClock;
use hindcast_proto::v1;
use hindcast_proto::v1::peer_client::PeerClient;
use hyper::Uri;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

/// An authority and the folder of what it signed.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("ca.pem"), &params.self_signed(&key).unwrap().pem());
        Self {
            issuer: Issuer::new(params, key),
            dir,
        }
    }

    /// Writes certificate and key under `name`; `years`: until when it is valid.
    pub fn sign(&self, name: &str, uri: &str, year: i32) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        if !uri.is_empty() {
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files = self.files(name);
        write(&files.cert, &cert.pem());
        write(&files.key, &key.serialize_pem());
        files
    }

    fn files(&self, name: &str) -> TlsFiles {
        let path = |end: &str| self.dir.path().join(format!("{name}{end}"));
        TlsFiles {
            ca: Some(self.dir.path().join("ca.pem")),
            cert: path(".pem"),
            key: path("-key.pem"),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a test lays out files as an operator does")]
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

fn open(files: TlsFiles, port: Port) -> Tls {
    Tls::open(files, port, Arc::new(SystemClock::new())).unwrap()
}

/// What both sides saw of one connection.
async fn meet(server: &Tls, mut dial: Dial) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taking = async {
        let (stream, from) = listener.accept().await.unwrap();
        match server.accept(stream, from).await {
            Let::In(mut stream, node) => {
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
                format!("in, node {:?}", node.map(|n| n.0))
            }
            Let::Plain(_) => "plain".to_owned(),
            Let::Refused => "refused".to_owned(),
        }
    };
    let uri: Uri = format!("https://{address}").parse().unwrap();
    let asking = async {
        let mut stream = match dial.call(uri).await {
            Ok(stream) => stream.into_inner(),
            Err(e) => return e.to_string().replace(&address.port().to_string(), "PORT"),
        };
        if matches!(stream, Stream::Plain(_)) {
            stream.write_all(b"PRI").await.unwrap();
        }
        let mut text = String::new();
        match stream.read_to_string(&mut text).await {
            Ok(_) => text,
            // TLS 1.3: the server judges after the client is done.
            Err(e) => words(&e).1,
        }
    };
    let (taken, asked) = tokio::join!(taking, asking);
    format!("server: {taken}\nclient: {asked}\n{:?}", server.stats().refused)
}

async fn check(server: &Tls, dial: Dial, expect: Expect) {
    expect.assert_eq(&meet(server, dial).await);
}

#[tokio::test]
async fn nodes_of_one_cluster_meet() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let two = open(ca.sign("2", "hindcast://c-1/node/2", 2100), Port::Peers);
    assert_eq!(two.own_node(), Some(("c-1".to_owned(), NodeId(2))));
    check(
        &two,
        one.dial(Some(NodeId(2))),
        expect![[r#"
            server: in, node Some(1)
            client: hello
            {}"#]],
    )
    .await;
    // 2100-01-01.
    assert_eq!(two.stats().expires, Some(TimestampNs(4_102_444_800_000_000_000)));
    assert_eq!(two.stats().handshakes, 1);
}

#[tokio::test]
async fn a_node_that_is_not_the_one_that_was_meant_is_not_spoken_to() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let two = open(ca.sign("2", "hindcast://c-1/node/2", 2100), Port::Peers);
    let seen = meet(&two, one.dial(Some(NodeId(3)))).await;
    assert!(
        seen.contains("node 3 was expected there, and its certificate is node 2's"),
        "{seen}"
    );
    assert_eq!(one.stats().refused, BTreeMap::from([(("dial", "other_node"), 1)]));
}

#[tokio::test]
async fn a_foreign_authority_is_refused_by_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let one = open(ours.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let claims = theirs.sign("1", "hindcast://c-1/node/1", 2100);
    let stranger = open(claims.clone(), Port::Peers);
    let seen = meet(&one, stranger.dial(None)).await;
    assert!(
        seen.contains("signed by an authority that is not trusted here"),
        "{seen}"
    );
    assert_eq!(stranger.stats().refused, BTreeMap::from([(("dial", "foreign_ca"), 1)]));
    // One that looks away when it asks is refused where it asks.
    let careless = TlsFiles {
        ca: ours.files("").ca,
        ..claims
    };
    let seen = meet(&one, open(careless, Port::Peers).dial(None)).await;
    assert!(seen.starts_with("server: refused"), "{seen}");
    assert_eq!(one.stats().refused[&("accept", "foreign_ca")], 1);
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_though_the_authority_is_the_same() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let other = open(ca.sign("2", "hindcast://c-2/node/2", 2100), Port::Peers);
    // The other one would find this out when it asks, so it is made to trust.
    let careless = Dial::with_files(&ca.files("2")).unwrap();
    check(
        &one,
        careless,
        expect![[r#"
            server: refused
            client: the other side refused it (AccessDenied); its log says why
            {("accept", "other_cluster"): 1}"#]],
    )
    .await;
    let seen = meet(&one, other.dial(None)).await;
    assert!(seen.contains("hindcast://c-1/node/1, of another cluster"), "{seen}");
}

#[tokio::test]
async fn a_clients_certificate_does_not_make_a_peer() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    ca.sign("agent", "hindcast://c-1/client/agent", 2100);
    let seen = meet(&one, Dial::with_files(&ca.files("agent")).unwrap()).await;
    assert!(seen.ends_with(r#"{("accept", "not_a_node"): 1}"#), "{seen}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let old = open(ca.sign("2", "hindcast://c-1/node/2", 2020), Port::Peers);
    check(
        &one,
        old.dial(Some(NodeId(1))),
        expect![[r#"
            server: refused
            client: the other side refused it (CertificateExpired); its log says why
            {("accept", "expired"): 1}"#]],
    )
    .await;
    let seen = meet(&old, one.dial(Some(NodeId(2)))).await;
    assert!(seen.contains("not valid any more"), "{seen}");
}

#[tokio::test]
async fn a_client_without_tls_is_told_apart_and_counted() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let seen = meet(&one, Dial::Plain).await;
    assert!(seen.starts_with("server: plain"), "{seen}");
    assert_eq!(one.stats().refused[&("accept", "plain")], 1);
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    let ca = Authority::new();
    let dial = Dial::with_files(&ca.sign("a", "hindcast://c-1/client/a", 2100)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    };
    let uri: Uri = format!("https://{address}").parse().unwrap();
    let (_, asked) = tokio::join!(server, dial.clone().call(uri));
    let why = asked.err().unwrap().to_string();
    assert!(why.ends_with("what answers there does not speak TLS"), "{why}");
}

#[tokio::test]
async fn the_client_port_asks_for_certificates_only_when_it_has_an_authority() {
    let ca = Authority::new();
    let files = ca.sign("server", "", 2100);
    let strict = open(files.clone(), Port::Clients);
    strict.belongs_to("c-1");
    let anybody = Dial::server(files.ca.as_deref(), None).unwrap();
    check(
        &strict,
        anybody.clone(),
        expect![[r#"
            server: refused
            client: the other side refused it (CertificateRequired); its log says why
            {("accept", "no_certificate"): 1}"#]],
    )
    .await;
    for (name, uri, fine) in [
        ("own", "hindcast://c-1/client/a", true),
        ("company", "https://example.org/people/7", true),
        ("other", "hindcast://c-2/client/a", false),
    ] {
        let seen = meet(&strict, Dial::with_files(&ca.sign(name, uri, 2100)).unwrap()).await;
        assert_eq!(seen.contains("client: hello"), fine, "{uri}: {seen}");
    }
    let open_to_all = open(TlsFiles { ca: None, ..files }, Port::Clients);
    assert!(meet(&open_to_all, anybody).await.contains("client: hello"));
    // The names of hosts are what clients look at.
    let foreign = Dial::server(Authority::new().files("").ca.as_deref(), None).unwrap();
    let seen = meet(&open_to_all, foreign).await;
    assert!(
        seen.contains("client: 127.0.0.1:PORT: its certificate is signed by"),
        "{seen}"
    );
}

#[tokio::test]
async fn new_certificates_are_taken_while_the_port_stays_open() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let two = open(ca.sign("2", "hindcast://c-1/node/2", 2020), Port::Peers);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut peers = accept_peers(listener, Some(two.clone()));
    let uri: Uri = format!("https://{address}").parse().unwrap();
    let expired = one.dial(None).call(uri.clone()).await.err().unwrap().to_string();
    assert!(expired.contains("not valid any more"), "{expired}");
    assert!(!two.look(), "nothing changed");

    // Half of the pair is in its place: the old one stays, and is not tried again and again.
    let old = ca.files("2");
    let fresh = ca.sign("fresh", "hindcast://c-1/node/2", 2100);
    #[allow(clippy::disallowed_methods, reason = "a test lays out files as an operator does")]
    let put = |from: &Path, to: &Path| std::fs::rename(from, to).unwrap();
    put(&fresh.key, &old.key);
    assert!(!two.look() && !two.look());
    assert_eq!(two.stats().reload_failures, 1);
    put(&fresh.cert, &old.cert);
    assert!(two.look());
    assert_eq!((two.stats().reloads, two.stats().reload_failures), (1, 1));
    let met = one.dial(Some(NodeId(2))).call(uri).await;
    assert!(met.is_ok(), "{:?}", met.err());
    use tokio_stream::StreamExt;
    assert!(peers.next().await.is_some());

    // Certificates of another node, or of another cluster, are none of this one's.
    for other in ["hindcast://c-1/node/3", "hindcast://c-2/node/2", ""] {
        ca.sign("2", other, 2100);
        assert!(!two.look(), "{other}");
    }
    assert_eq!(two.own_node(), Some(("c-1".to_owned(), NodeId(2))));
}

#[tokio::test]
async fn a_node_cannot_speak_for_another_one() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let two = open(ca.sign("2", "hindcast://c-1/node/2", 2100), Port::Peers);
    let peers = Peers::new(NodeId(2), Arc::new(SimDisk::default()), Some(two.clone()));
    peers.register(
        crate::io::peers::CALL_HELLO,
        Arc::new(|from, _| Box::pin(async move { Ok(Bytes::from(format!("hello {from}"))) })),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(peer_service(peers));
    tokio::spawn(server.serve_with_incoming(accept_peers(listener, Some(two))));
    let channel = channel_to(&address.to_string(), Some(&one), Some(NodeId(2))).unwrap();
    let call = |from| {
        let mut client = PeerClient::new(channel.clone());
        let kind = crate::io::peers::CALL_HELLO.to_owned();
        let request = v1::CallRequest {
            from,
            kind,
            ..Default::default()
        };
        async move { client.call(request).await.map(|a| a.into_inner().body) }
    };
    assert_eq!(call(1).await.unwrap(), "hello 1");
    let refused = call(3).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert_eq!(refused.message(), "node 3 is spoken for by the certificate of node 1");
    // Without TLS there is no word at all.
    let plain = channel_to(&address.to_string(), None, None).unwrap();
    let request = v1::CallRequest::default();
    assert!(PeerClient::new(plain).call(request).await.is_err());
}

#[tokio::test]
async fn somebody_who_says_nothing_holds_up_nobody() {
    let ca = Authority::new();
    let one = open(ca.sign("1", "hindcast://c-1/node/1", 2100), Port::Peers);
    let two = open(ca.sign("2", "hindcast://c-1/node/2", 2100), Port::Peers);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _peers = accept_peers(listener, Some(two));
    let _silent = TcpStream::connect(address).await.unwrap();
    let uri: Uri = format!("https://{address}").parse().unwrap();
    let met = tokio::time::timeout(Duration::from_secs(5), one.dial(None).call(uri)).await;
    assert!(met.unwrap().is_ok());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let ca = Authority::new();
    let files = ca.sign("1", "hindcast://c-1/node/1", 2100);
    let other = ca.sign("2", "hindcast://c-1/node/2", 2100);
    let clock = || Arc::new(SystemClock::new());
    let refused = |files: TlsFiles, port| match Tls::open(files, port, clock()) {
        Ok(_) => panic!("it was taken"),
        Err(e) => e.to_string(),
    };
    let mixed = TlsFiles {
        key: other.key,
        ..files.clone()
    };
    assert!(refused(mixed, Port::Clients).contains("do not belong together"));
    let no_key = TlsFiles {
        key: files.cert.clone(),
        ..files.clone()
    };
    assert!(refused(no_key, Port::Clients).contains("holds no private key"));
    let gone = TlsFiles {
        cert: files.cert.with_extension("gone"),
        ..files.clone()
    };
    assert!(refused(gone, Port::Clients).contains("cannot be read"));
    let nameless = ca.sign("3", "", 2100);
    assert!(refused(nameless, Port::Peers).contains("names no node"));
    let trusting = TlsFiles { ca: None, ..files };
    assert!(refused(trusting, Port::Peers).contains("--tls-ca"));
}
