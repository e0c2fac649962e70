//! HTTP over TLS, and certificates that change.

use std::{path::Path, sync::Arc, time::Duration};

use equipoise::config::TlsFiles;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
        version::{TLS12, TLS13},
    },
};

use crate::app::{Setup, StandIn, TOKEN, TestApp, guard, image};

const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// Writes a new certificate and its key there; gives the certificate.
fn issue(files: &TlsFiles) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    made.cert.der().clone()
}

fn files_in(folder: &Path) -> TlsFiles {
    TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") }
}

fn setup() -> (Setup, TlsFiles, CertificateDer<'static>) {
    let setup = Setup::new();
    let files = files_in(setup.state.path());
    let certificate = issue(&files);
    let tls = files.clone();
    (setup.config(move |config| config.tls = Some(tls.clone())), files, certificate)
}

fn address(app: &TestApp) -> &str {
    app.url.trim_start_matches("http://")
}

/// Connects as somebody who trusts this certificate alone.
async fn connect(
    app: &TestApp,
    trusted: &CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address(app)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    guard("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// Sends a request and gives the whole answer as text.
async fn ask(mut stream: TlsStream<TcpStream>, method: &str, path: &str, body: &[u8]) -> String {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    guard("an answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn status(app: &TestApp, trusted: &CertificateDer<'static>) -> String {
    let stream = connect(app, trusted, BOTH).await.unwrap();
    ask(stream, "GET", "/livez", b"").await.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn every_route_answers_over_tls_of_both_versions() {
    let (setup, _, certificate) = setup();
    let app = setup.start();
    for version in BOTH {
        let stream = connect(&app, &certificate, &[version]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let answer = ask(stream, "POST", "/v1/classify?top_k=1", &image("key", 0)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"key\""), "{answer}");
    }
    let stream = connect(&app, &certificate, BOTH).await.unwrap();
    let answer = ask(stream, "GET", "/admin/v1/models/icons30/heads", b"").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    app.shutdown();
}

#[tokio::test]
async fn plain_http_and_other_certificates_get_nothing() {
    let (setup, _, _) = setup();
    let app = setup.start();
    let folder = tempfile::tempdir().unwrap();
    let other = issue(&files_in(folder.path()));
    assert!(connect(&app, &other, BOTH).await.is_err());
    let mut plain = TcpStream::connect(address(&app)).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // It may also be cut off.
    let _ = guard("the end of the connection", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn a_certificate_changes_while_the_server_runs_and_a_broken_one_changes_nothing() {
    let (setup, files, first) = setup();
    let app = setup.start();
    assert_eq!(status(&app, &first).await, "200");
    // A connection that was there before goes on.
    let before = connect(&app, &first, BOTH).await.unwrap();
    let second = issue(&files);
    app.server.reload();
    assert_eq!(status(&app, &second).await, "200");
    assert!(connect(&app, &first, BOTH).await.is_err());
    assert!(ask(before, "GET", "/livez", b"").await.starts_with("HTTP/1.1 200"));

    // A key that is another's, no PEM at all, and nothing.
    let elsewhere = tempfile::tempdir().unwrap();
    issue(&files_in(elsewhere.path()));
    std::fs::copy(elsewhere.path().join("key.pem"), &files.key).unwrap();
    for n in 0..3 {
        match n {
            0 => {}
            1 => std::fs::write(&files.cert, "x").unwrap(),
            _ => std::fs::remove_file(&files.key).unwrap(),
        }
        app.server.reload();
        assert_eq!(status(&app, &second).await, "200");
        let stream = connect(&app, &second, BOTH).await.unwrap();
        let metrics = ask(stream, "GET", "/metrics", b"").await;
        for sample in [
            "equipoise_file_stale{file=\"certificate\"} 1".to_owned(),
            format!("equipoise_reloads_total{{file=\"certificate\",outcome=\"failed\"}} {}", n + 1),
        ] {
            assert!(metrics.contains(&sample), "{sample}\n{metrics}");
        }
    }
    // And without being told.
    let third = issue(&files);
    let renewed = async { while connect(&app, &third, BOTH).await.is_err() {} };
    guard("the new certificate", renewed).await;
}

#[test]
fn files_that_make_no_pair_keep_the_server_from_starting() {
    let (setup, files, _) = setup();
    let start = || setup.server().map(drop).map_err(|error| error.to_string());
    start().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    issue(&files_in(elsewhere.path()));
    std::fs::copy(elsewhere.path().join("key.pem"), &files.key).unwrap();
    let error = start().unwrap_err();
    assert!(error.contains("cert.pem") && error.contains("key.pem"), "{error}");
    std::fs::write(&files.key, "no key").unwrap();
    assert!(start().unwrap_err().contains("key.pem"));
    std::fs::write(&files.cert, "").unwrap();
    assert!(start().unwrap_err().contains("cert.pem"));
    std::fs::remove_file(&files.cert).unwrap();
    assert!(start().unwrap_err().contains("cert.pem"));
}

#[tokio::test]
async fn shutting_down_waits_for_requests_and_not_for_handshakes() {
    let (setup, files, certificate) = setup();
    let stand_in = StandIn::new();
    let setup = setup.config(move |config| {
        config.tls = Some(files.clone());
        config.shutdown_timeout = Duration::from_secs(3600);
    });
    let mut app = setup.start_with(&stand_in);
    // This one says nothing.
    let silent = TcpStream::connect(address(&app)).await.unwrap();
    stand_in.hold();
    let stream = connect(&app, &certificate, BOTH).await.unwrap();
    let in_flight = tokio::spawn(async move { ask(stream, "POST", "/v1/classify", &image("key", 0)).await });
    stand_in.begun(1).await;
    app.begin_shutdown();
    let refused = async { while TcpStream::connect(address(&app)).await.is_ok() {} };
    guard("the listener's end", refused).await;
    stand_in.release();
    assert!(guard("the answer", in_flight).await.unwrap().starts_with("HTTP/1.1 200"));
    let end = tokio::task::spawn_blocking(move || app.shutdown());
    guard("the end of the server", end).await.unwrap();
    drop(silent);
}
