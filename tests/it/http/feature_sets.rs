//! Feature sets over HTTP: what is kept, what is refused, and what is left behind.

use std::{
    io::{Cursor, Read, Write},
    net::TcpStream,
    path::PathBuf,
};

use equipoise::dataset::{FeatureSet, write_npz};
use futures_util::StreamExt;
use ndarray::Array2;
use serde_json::{Value, json};

use crate::{
    app::{Answer, CLASSES, DIM, Setup, TOKEN, TestApp, guard, send, shared},
    feature_sets::{
        archives::{f32_bytes, i64_bytes, npy, npy_with_header, npz, tensors, zip_of},
        hostile_files,
    },
};

const SETS: &str = "/admin/v1/models/icons30/feature-sets";

/// A set that differs with `seed` and fits icons30. Its numbers are float16's too.
fn set(rows: usize, seed: usize) -> FeatureSet {
    let value = |(row, column): (usize, usize)| ((row * 31 + column * 17 + seed * 7) % 101) as f32 / 32.0 - 1.0;
    let labels = (0..rows).map(|row| ((row * 7 + seed) % CLASSES) as u32).collect();
    FeatureSet::new(Array2::from_shape_fn((rows, DIM), value), labels, CLASSES).unwrap()
}

fn npz_of(set: &FeatureSet) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    write_npz(&mut file, set.features(), set.labels()).unwrap();
    file.into_inner()
}

fn labels_of(set: &FeatureSet) -> Vec<u8> {
    i64_bytes(&set.labels().iter().map(|&label| label.into()).collect::<Vec<_>>())
}

fn id_of(set: &FeatureSet) -> String {
    format!("fs_{}", &set.digest().to_hex()[..16])
}

fn view_of(set: &FeatureSet, name: &str) -> Value {
    json!({
        "id": id_of(set), "name": name, "rows": set.num_rows(), "feature_dim": DIM, "classes": CLASSES,
        "digest": format!("sha256:{}", set.digest().to_hex()), "zero_rows": set.num_zero_rows(),
    })
}

async fn upload(app: &TestApp, query: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(app.admin("POST", &format!("feature-sets{query}")).body(body)).await
}

/// A body of `n` pieces whose length is not announced.
fn unannounced(n: usize, length: usize) -> reqwest::Body {
    let pieces = (0..n).map(move |_| Ok::<_, std::io::Error>(vec![7; length]));
    reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
}

async fn list(app: &TestApp) -> Value {
    send(app.admin("GET", "feature-sets")).await.expect(200).json()["feature_sets"].clone()
}

fn folder(setup: &Setup) -> PathBuf {
    setup.state.path().join("models/icons30/feature-sets")
}

fn files(setup: &Setup) -> Vec<String> {
    let entries = std::fs::read_dir(folder(setup)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The files of sets that are kept, and nothing else.
fn files_of(sets: &[&FeatureSet]) -> Vec<String> {
    let names = |set: &&FeatureSet| ["json", "safetensors"].map(|suffix| format!("{}.{suffix}", set.digest().to_hex()));
    let mut names: Vec<String> = sets.iter().flat_map(names).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_set_comes_back_as_it_was_sent_whatever_the_file() {
    let setup = Setup::new();
    let app = setup.start();
    assert_eq!(list(&app).await, json!([]));
    let sent = set(40, 1);
    let (values, labels) = (sent.features(), labels_of(&sent));
    let halves = |value: &f32| {
        // Exact: the numbers are multiples of 1/32 below 4.
        let bits = value.to_bits();
        let half = match bits << 1 {
            0 => 0,
            _ => ((bits >> 23 & 0xff) as u16 + 15 - 127) << 10 | (bits >> 13 & 0x3ff) as u16,
        };
        (half | (bits >> 16 & 0x8000) as u16).to_le_bytes()
    };
    let halves: Vec<u8> = values.iter().flat_map(halves).collect();
    let singles: Vec<u8> = f32_bytes(values.as_slice().unwrap());
    let doubles: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let by_column: Vec<f32> = values.t().iter().copied().collect();
    let fortran = "{'descr': '<f4', 'fortran_order': True, 'shape': (40, 96), }";
    let npy_labels = npy("<i8", "(40,)", &labels);
    let small: Vec<u8> = sent.labels().iter().map(|&label| label as u8).collect();
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("npz", npz_of(&sent)),
        ("float16", npz(&npy("<f2", "(40, 96)", &halves), &npy_labels)),
        ("float64", npz(&npy("<f8", "(40, 96)", &doubles), &npy("|u1", "(40,)", &small))),
        ("by column", npz(&npy_with_header([1, 0], fortran, &f32_bytes(&by_column)), &npy_labels)),
        (
            "deflated",
            zip_of(
                &[("labels.npy", &npy_labels), ("feats.npy", &npy("<f4", "(40, 96)", &singles)), ("names.npy", b"x")],
                zip::CompressionMethod::Deflated,
            ),
        ),
        ("safetensors", tensors(&[("features", "F32", "[40,96]", &singles), ("labels", "I64", "[40]", &labels)])),
        ("safetensors of float64", tensors(&[("labels", "U8", "[40]", &small), ("feats", "F64", "[40,96]", &doubles)])),
        (
            "safetensors of float16",
            tensors(&[("feats", "F16", "[40,96]", &halves), ("labels", "I64", "[40]", &labels)]),
        ),
    ];
    for (index, (what, file)) in files.into_iter().enumerate() {
        let answer = upload(&app, "?name=train", file).await;
        assert_eq!(answer.status, if index == 0 { 201 } else { 200 }, "{what}: {}", answer.text());
        assert_eq!(answer.json(), view_of(&sent, "train"), "{what}");
        let location = format!("{SETS}/{}", id_of(&sent));
        assert_eq!(answer.header("location"), (index == 0).then_some(location.as_str()), "{what}");
    }
    assert_eq!(list(&app).await, json!([view_of(&sent, "train")]));
    let one = send(app.admin("GET", &format!("feature-sets/{}", id_of(&sent)))).await.expect(200);
    assert_eq!(one.json(), view_of(&sent, "train"));
    // What a fit is given.
    let store = app.server.app().registry.model(None).unwrap().feature_sets().unwrap();
    assert_eq!(*store.pin(&id_of(&sent)).unwrap().set(), sent);
    assert_eq!(self::files(&setup), files_of(&[&sent]));
}

#[tokio::test]
async fn names_are_kept_until_another_is_given() {
    let app = Setup::new().start();
    let (first, second) = (set(3, 1), set(3, 2));
    let name = |answer: Answer| answer.json()["name"].as_str().unwrap().to_owned();
    assert_eq!(name(upload(&app, "", npz_of(&first)).await.expect(201)), id_of(&first));
    assert_eq!(name(upload(&app, "?name=a", npz_of(&first)).await.expect(200)), "a");
    assert_eq!(name(upload(&app, "", npz_of(&first)).await.expect(200)), "a");
    assert_eq!(name(upload(&app, "?name=a", npz_of(&second)).await.expect(201)), "a");
    assert_eq!(name(upload(&app, "?name=b", npz_of(&first)).await.expect(200)), "b");
    // In the order of their first uploads.
    assert_eq!(list(&app).await, json!([view_of(&first, "b"), view_of(&second, "a")]));
}

#[tokio::test]
async fn zero_rows_are_taken_and_counted() {
    let app = Setup::new().start();
    let zeros = FeatureSet::new(Array2::zeros((4, DIM)), vec![0, 1, 2, 29], CLASSES).unwrap();
    assert_eq!(upload(&app, "", npz_of(&zeros)).await.expect(201).json()["zero_rows"], 4);
}

#[tokio::test]
async fn sets_survive_a_restart_and_what_is_damaged_or_left_over_is_not_listed() {
    let setup = Setup::new();
    let app = setup.start();
    let sets = [set(5, 1), set(6, 2), set(7, 3), set(8, 4)];
    for (index, set) in sets.iter().enumerate() {
        upload(&app, &format!("?name=set-{index}"), npz_of(set)).await.expect(201);
    }
    let before = list(&app).await;
    app.shutdown();
    let path = |set: &FeatureSet, suffix: &str| folder(&setup).join(format!("{}.{suffix}", set.digest().to_hex()));

    let left_over = ["incoming-0", "incoming-7-converted", "incoming-7-converted.tmp", "x.json.tmp", "lonely.json"];
    for name in left_over {
        std::fs::write(folder(&setup).join(name), "left over").unwrap();
    }
    let app = setup.start();
    assert_eq!(list(&app).await, before);
    assert_eq!(files(&setup), files_of(&sets.iter().collect::<Vec<_>>()));
    app.shutdown();

    // One is cut short, one has a flipped bit, one has lost its name.
    let good = std::fs::read(path(&sets[0], "safetensors")).unwrap();
    std::fs::write(path(&sets[0], "safetensors"), &good[..good.len() - 1]).unwrap();
    let mut flipped = std::fs::read(path(&sets[1], "safetensors")).unwrap();
    let last = flipped.len() - 4;
    flipped[last] ^= 1;
    std::fs::write(path(&sets[1], "safetensors"), flipped).unwrap();
    std::fs::write(path(&sets[2], "json"), "{").unwrap();
    let app = setup.start();
    assert_eq!(list(&app).await, json!([view_of(&sets[2], &id_of(&sets[2])), view_of(&sets[3], "set-3")]));
    let gone = send(app.admin("GET", &format!("feature-sets/{}", id_of(&sets[0])))).await;
    gone.problem(404, "feature_set_not_found");
    // The same content mends it.
    upload(&app, "?name=mended", npz_of(&sets[0])).await.expect(201);
    app.shutdown();
    let app = setup.start();
    assert!(list(&app).await.as_array().unwrap().contains(&view_of(&sets[0], "mended")));
}

#[tokio::test]
async fn a_deleted_set_is_gone_and_its_room_is_free() {
    let setup = Setup::new().config(|config| config.max_feature_sets_bytes = 100_000);
    let app = setup.start();
    let sets: Vec<FeatureSet> = (0..3).map(|seed| set(60, seed)).collect();
    let path = |set: &FeatureSet| format!("feature-sets/{}", id_of(set));
    // Each takes 24 kB in its file, and as much while it is uploaded.
    for set in &sets {
        upload(&app, "", npz_of(set)).await.expect(201);
    }
    let detail = upload(&app, "", npz_of(&set(60, 9))).await.problem(507, "insufficient_storage");
    assert!(detail.contains("of 100000 bytes"), "{detail}");
    send(app.admin("DELETE", &path(&sets[0]))).await.expect(204);
    send(app.admin("DELETE", &path(&sets[0]))).await.problem(404, "feature_set_not_found");
    send(app.admin("GET", &path(&sets[0]))).await.problem(404, "feature_set_not_found");
    assert_eq!(files(&setup), files_of(&[&sets[1], &sets[2]]));
    upload(&app, "", npz_of(&set(60, 9))).await.expect(201);
    let samples = app.metrics().await;
    assert_eq!(samples.get("equipoise_feature_sets{model=\"icons30\"}"), 3.0);
    let on_disk: u64 = files(&setup)
        .iter()
        .filter(|name| name.ends_with(".safetensors"))
        .map(|name| std::fs::metadata(folder(&setup).join(name)).unwrap().len())
        .sum();
    assert_eq!(samples.get("equipoise_feature_set_bytes{model=\"icons30\"}"), on_disk as f64);
    assert_eq!(samples.get("equipoise_rejected_total{reason=\"insufficient_storage\"}"), 1.0);
    app.shutdown();
    // What is kept counts after a restart too.
    let app = setup.start();
    upload(&app, "", npz_of(&set(60, 10))).await.problem(507, "insufficient_storage");
    // Nobody says how long it is.
    let answer = upload(&app, "", unannounced(64, 1 << 16)).await;
    answer.problem(507, "insufficient_storage");
    assert_eq!(files(&setup).len(), 6);
}

#[tokio::test]
async fn a_set_in_use_is_not_deleted() {
    let setup = Setup::new();
    let app = setup.start();
    let kept = set(5, 1);
    upload(&app, "?name=a", npz_of(&kept)).await.expect(201);
    let store = app.server.app().registry.model(None).unwrap().feature_sets().unwrap();
    let path = format!("feature-sets/{}", id_of(&kept));
    let first = store.pin(&id_of(&kept)).unwrap();
    let second = first.clone();
    // Another name does not make it another set.
    upload(&app, "?name=b", npz_of(&kept)).await.expect(200);
    let third = store.pin(&id_of(&kept)).unwrap();
    assert_eq!((first.name(), third.name(), third.id()), ("a", "b", id_of(&kept).as_str()));
    for guard in [first, second, third] {
        send(app.admin("DELETE", &path)).await.problem(409, "feature_set_in_use");
        assert_eq!(*guard.set(), kept);
        drop(guard);
    }
    send(app.admin("DELETE", &path)).await.expect(204);
    assert!(store.pin(&id_of(&kept)).is_err());
    assert_eq!(files(&setup), files_of(&[]));
}

#[tokio::test]
async fn what_is_too_large_is_413_at_the_latest_when_the_limit_is_passed() {
    let setup = Setup::new().config(|config| config.max_feature_set_bytes = 30_000);
    let app = setup.start();
    upload(&app, "", npz_of(&set(60, 1))).await.expect(201);
    let detail = upload(&app, "", npz_of(&set(90, 1))).await.problem(413, "body_too_large");
    assert!(detail.contains("30000"), "{detail}");
    // Nobody says how long it is.
    upload(&app, "", unannounced(64, 4000)).await.problem(413, "body_too_large");
    // A small file that unpacks to more, and one that takes more as float32.
    let zeros = npy("<f4", "(100, 96)", &[0; 100 * 96 * 4]);
    let labels = npy("|u1", "(100,)", &[0; 100]);
    let bomb = zip_of(&[("features.npy", &zeros), ("labels.npy", &labels)], zip::CompressionMethod::Deflated);
    assert!(bomb.len() < 3000);
    let detail = upload(&app, "", bomb).await.problem(413, "feature_set_too_large");
    assert!(detail.contains("`features`") && detail.contains("30000"), "{detail}");
    let halves = npz(&npy("<f2", "(100, 96)", &[0; 100 * 96 * 2]), &labels);
    upload(&app, "", halves).await.problem(413, "feature_set_too_large");
    assert_eq!(files(&setup), files_of(&[&set(60, 1)]));
    assert_eq!(app.metrics().await.get("equipoise_rejected_total{reason=\"feature_set_too_large\"}"), 2.0);
}

#[tokio::test]
async fn the_limit_of_other_bodies_does_not_bound_feature_sets_and_heads() {
    let app = Setup::new().config(|config| config.max_body_bytes = 1000).start();
    upload(&app, "", npz_of(&set(60, 1))).await.expect(201);
    app.put_head("new", super::head_file(1, None)).await.expect(201);
    app.classify("", vec![0; 1001]).await.problem(413, "body_too_large");
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_refused_before_the_body_is_read() {
    let setup = Setup::new();
    let app = setup.start();
    let body = npz_of(&set(3, 1));
    for content_type in ["application/octet-stream", "application/zip", "application/x-www-form-urlencoded; a=b"] {
        let request = app.admin("POST", "feature-sets").header("content-type", content_type);
        assert!(send(request.body(body.clone())).await.status < 202);
    }
    for content_type in ["application/json", "text/plain", "multipart/form-data; boundary=x", "image/png"] {
        let request = app.admin("POST", "feature-sets").header("content-type", content_type);
        send(request.body(body.clone())).await.problem(415, "unsupported_media_type");
    }
    for query in ["?name=", "?name=a/b", "?name=-a", "?name=%20", "?nme=a", "?name=a&name=b", "?name=ä"] {
        upload(&app, query, body.clone()).await.problem(422, "invalid_query");
    }
    let too_long = format!("?name={}", "a".repeat(65));
    upload(&app, &too_long, body.clone()).await.problem(422, "invalid_query");
    for id in ["fs_0000000000000000", "none", "fs_", "..", "%2e%2e%2f", "a%20b"] {
        for method in ["GET", "DELETE"] {
            let answer = send(app.admin(method, &format!("feature-sets/{id}"))).await;
            assert_eq!(answer.status, 404, "{method} {id}");
        }
    }
    for (method, path) in
        [("PUT", SETS.to_owned()), ("PATCH", format!("{SETS}/none")), ("POST", format!("{SETS}/none"))]
    {
        send(app.request(method, &path).bearer_auth(TOKEN)).await.problem(405, "method_not_allowed");
    }
    for (method, path) in [("GET", ""), ("POST", ""), ("GET", "/x"), ("DELETE", "/x")] {
        send(app.request(method, &format!("{SETS}{path}"))).await.problem(401, "unauthorized");
        send(app.request(method, &format!("{SETS}{path}")).bearer_auth("x")).await.problem(403, "forbidden");
        let elsewhere = format!("/admin/v1/models/none/feature-sets{path}");
        send(app.request(method, &elsewhere).bearer_auth(TOKEN)).await.problem(404, "model_not_found");
    }
    assert_eq!(files(&setup), files_of(&[&set(3, 1)]));
}

#[tokio::test]
async fn a_set_of_another_model_is_refused_and_both_numbers_are_said() {
    let app = Setup::new().start();
    let narrow = npz(&npy("<f4", "(2, 95)", &[0; 760]), &npy("<i8", "(2,)", &i64_bytes(&[0, 1])));
    let detail = upload(&app, "", narrow).await.problem(422, "incompatible_feature_set");
    assert!(detail.contains("95") && detail.contains("96"), "{detail}");
    let labels = |labels: [i64; 2]| npz(&npy("<f4", "(2, 96)", &[0; 768]), &npy("<i8", "(2,)", &i64_bytes(&labels)));
    let detail = upload(&app, "", labels([29, 30])).await.problem(422, "invalid_feature_set");
    assert!(detail.contains("row 1") && detail.contains("is 30") && detail.contains("30 classes"), "{detail}");
    upload(&app, "", labels([29, 0])).await.expect(201);
}

#[tokio::test]
async fn files_that_lie_are_refused_and_leave_nothing_behind() {
    let setup = Setup::new().config(|config| config.max_feature_set_bytes = 1 << 20);
    let app = setup.start();
    let good = npz_of(&set(3, 1));
    let truncated = (0..40).map(|part| ("cut short".to_owned(), good[..good.len() * part / 40].to_vec()));
    let wide = |values: &[f32], labels: &[i64]| {
        npz(&npy("<f4", "(2, 96)", &f32_bytes(values)), &npy("<i8", "(2,)", &i64_bytes(labels)))
    };
    let mut nan = [0.5; 192];
    nan[100] = f32::NAN;
    let more = [
        ("NaN".to_owned(), wide(&nan, &[0, 1])),
        ("a negative label".to_owned(), wide(&[0.5; 192], &[-1, 1])),
        ("a class too many".to_owned(), wide(&[0.5; 192], &[0, 30])),
    ];
    let mut n = 0;
    for (what, bytes) in hostile_files().into_iter().chain(truncated).chain(more) {
        let answer = upload(&app, "", bytes).await;
        let detail = match answer.json()["code"].as_str() {
            Some(code @ ("invalid_feature_set" | "incompatible_feature_set")) => answer.problem(422, code),
            Some(code @ ("feature_set_too_large" | "body_too_large")) => answer.problem(413, code),
            _ => panic!("{what}: {} {}", answer.status, answer.text()),
        };
        assert!(detail.len() < 400 && !detail.contains("incoming"), "{what}: {detail}");
        n += 1;
    }
    assert!(n > 220, "{n}");
    assert_eq!(files(&setup), files_of(&[]));
    upload(&app, "", good).await.expect(201);
}

#[tokio::test]
async fn a_caller_that_breaks_off_leaves_nothing_behind() {
    let setup = Setup::new();
    let app = setup.start();
    let file = npz_of(&set(20, 1));
    let head = |length: usize| {
        format!("POST {SETS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {length}\r\n\r\n")
    };
    let address = app.url.trim_start_matches("http://").to_owned();
    for sent in [0, 1, 1000, file.len() - 1] {
        let (address, head, part) = (address.clone(), head(file.len()), file[..sent].to_vec());
        let connect = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&part).unwrap();
            stream
        });
        let stream = connect.await.unwrap();
        // It has begun, and then it is gone.
        guard("an upload that begins", async {
            while files(&setup).is_empty() {
                tokio::task::yield_now().await
            }
        })
        .await;
        drop(stream);
        guard("its end", async {
            while !files(&setup).is_empty() {
                tokio::task::yield_now().await
            }
        })
        .await;
    }
    // Nothing of it counts.
    app.until("no request but the scrape", |samples| samples.get("equipoise_requests_in_flight") == 1.0).await;
    assert_eq!(list(&app).await, json!([]));
    upload(&app, "", file).await.expect(201);
}

#[tokio::test]
async fn an_upload_may_take_longer_than_a_request_and_may_not_stand_still() {
    let limit = std::time::Duration::from_secs(2);
    let setup = Setup::new().config(move |config| config.max_request_time = limit);
    let app = setup.start();
    let file = npz_of(&set(20, 1));
    // Five pauses make more than a request may take, and none of them does.
    let pieces: Vec<Vec<u8>> = file.chunks(file.len() / 5).map(<[u8]>::to_vec).collect();
    let slow = futures_util::stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(limit / 4).await;
        Ok::<_, std::io::Error>(piece)
    });
    upload(&app, "", reqwest::Body::wrap_stream(slow)).await.expect(201);
    let address = app.url.trim_start_matches("http://").to_owned();
    let stalled = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let head =
            format!("POST {SETS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 99\r\n\r\nPK");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert_eq!(guard("an answer to one that stands still", stalled).await.unwrap(), "HTTP/1.1 408");
    assert_eq!(files(&setup), files_of(&[&set(20, 1)]));
}

#[tokio::test]
async fn uploads_of_the_same_content_at_once_are_one_set() {
    let setup = Setup::new();
    let app = setup.start();
    let file = npz_of(&set(200, 1));
    let uploads = (0..8).map(|_| upload(&app, "?name=one", file.clone()));
    let answers = futures_util::future::join_all(uploads).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(answers.iter().all(|answer| answer.json() == view_of(&set(200, 1), "one")));
    assert_eq!(files(&setup), files_of(&[&set(200, 1)]));
}

#[tokio::test]
async fn a_model_without_a_state_directory_takes_none() {
    let app = Setup::new().start_with(&crate::app::StandIn::new());
    upload(&app, "", npz_of(&set(3, 1))).await.problem(500, "state_not_written");
    assert!(shared().get(SETS).await.status == 401);
}
