//! Every way to be refused: its status, its code, and that the server goes on.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{feature_rows, head_file_of};
use crate::app::{Answer, CLASSES, DIM, Setup, TOKEN, TestApp, image, multipart, root, send, shared};

const CLASSIFY: &str = "/v1/models/icons30/classify";
const FEATURES: &str = "/v1/models/icons30/features";
const HEADS: &str = "/admin/v1/models/icons30/heads";

async fn post(path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(shared().post(path).header("content-type", content_type).body(body)).await
}

/// A list of `n` numbers as JSON, with `first` as its first.
fn row(first: &str, n: usize) -> String {
    format!("[{first}{}]", ", 0.5".repeat(n - 1))
}

fn features(rows: &[String]) -> String {
    format!("{{\"features\": [{}]}}", rows.join(", "))
}

#[tokio::test]
async fn json_that_does_not_parse_is_400() {
    let good = row("0", DIM);
    let cases = [
        String::new(),
        "{".to_owned(),
        "not json".to_owned(),
        "\u{feff}{}".to_owned(),
        features(&[row("NaN", DIM)]),
        features(&[good.clone(), row("Infinity", DIM)]),
        features(&[row("-Infinity", DIM)]),
        features(&[row("1e", DIM)]),
        features(&[row("01", DIM)]),
        features(std::slice::from_ref(&good)) + "x",
        features(std::slice::from_ref(&good)) + "{}",
        features(&[good]).replace("]}", "],}"),
        "{\"unknown\": 1".to_owned(),
        "{\"features\": [[\"text\", NaN]]}".to_owned(),
        "[".repeat(200_000),
    ];
    for path in [CLASSIFY, FEATURES] {
        for body in &cases {
            let answer = post(path, "application/json", body.clone()).await;
            assert_eq!(answer.status, 400, "{}: {}", &body[..body.len().min(80)], answer.text());
            answer.problem(400, "invalid_json");
        }
    }
    let not_utf8 = b"{\"features\": \"\xff\xfe\"}".to_vec();
    assert!([400, 422].contains(&post(CLASSIFY, "application/json", not_utf8).await.status));
}

#[tokio::test]
async fn json_that_is_something_else_than_images_or_features_is_422_and_says_what() {
    let good = row("0", DIM);
    let b64 = STANDARD.encode(image("key", 0));
    let cases = [
        ("{}".to_owned(), "images"),
        ("[]".to_owned(), "object"),
        ("null".to_owned(), "object"),
        ("3".to_owned(), "object"),
        ("{\"unknown\": 1}".to_owned(), "unknown"),
        (format!("{{\"features\": [{good}], \"more\": 1}}"), "more"),
        (format!("{{\"features\": [{good}], \"images\": [{{\"b64\": \"{b64}\"}}]}}"), "exclude"),
        (format!("{{\"features\": [{good}], \"features\": [{good}]}}"), "twice"),
        ("{\"features\": null}".to_owned(), "null"),
        ("{\"images\": null}".to_owned(), "null"),
        ("{\"features\": []}".to_owned(), "empty"),
        ("{\"images\": []}".to_owned(), "empty"),
        ("{\"features\": [[]]}".to_owned(), "row 0"),
        ("{\"features\": {}}".to_owned(), "feature rows"),
        (format!("{{\"features\": {good}}}"), "row 0"),
        (features(&[good.clone(), "null".to_owned()]), "row 1"),
        (features(&[good.clone(), row("null", DIM)]), "row 1"),
        (features(&[good.clone(), row("\"1\"", DIM)]), "row 1"),
        (features(&[good.clone(), row("true", DIM)]), "row 1"),
        (features(&[good.clone(), row("[0]", DIM)]), "row 1"),
        (features(&[good.clone(), good.clone(), row("1", DIM - 1)]), "row 2"),
        (features(&[good.clone(), row("1", DIM + 1)]), "row 1"),
        (features(&[row("1", DIM - 1), row("1", DIM - 1)]), "row 0"),
        (features(&[good.clone(), row("1e39", DIM)]), "row 1"),
        (features(&[good.clone(), row("-3.5e38", DIM)]), "row 1"),
        (features(&[good.clone(), row("1e999", DIM)]), "row 1"),
        (features(&[row("-1e400", DIM)]), "row 0"),
        ("{\"images\": [{}]}".to_owned(), "b64"),
        ("{\"images\": [\"text\"]}".to_owned(), "expected image 0 of `images` to be an object with `b64`"),
        ("{\"images\": [[\"QUJD\"]]}".to_owned(), "image 0 of `images`"),
        ("{\"images\": [{\"b64\": 3}]}".to_owned(), "string"),
        ("{\"images\": [{\"b64\": null}]}".to_owned(), "null"),
        (format!("{{\"images\": [{{\"b64\": \"{b64}\", \"x\": \"\"}}]}}"), "nothing else"),
        (format!("{{\"images\": [{{\"b64\": \"{b64}\", \"x\": 1}}]}}"), "image 0: unknown key `x`"),
        (format!("{{\"images\": [{{\"b64\": \"{b64}\", \"b64\": \"{b64}\"}}]}}"), "`b64` stands there twice"),
        (format!("{{\"images\": [{{\"b64\": \"{b64}\"}}, {{\"b64\": \"%%%\"}}]}}"), "image 1"),
        (format!("{{\"images\": [{{\"b64\": \"{}\"}}]}}", &b64[..b64.len() - 2]), "image 0"),
    ];
    for (body, said) in &cases {
        let answer = post(CLASSIFY, "application/json", body.clone()).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
        let detail = answer.problem(422, "invalid_body");
        assert!(detail.contains(said), "{said} in {detail}");
    }
}

#[tokio::test]
async fn a_number_beyond_float64_in_what_is_no_json_is_400() {
    let body = features(&[row("1e999", DIM)]) + "]";
    post(CLASSIFY, "application/json", body).await.problem(400, "invalid_json");
}

#[tokio::test]
async fn the_largest_and_the_smallest_float32_are_taken() {
    for value in ["3.4028234e38", "1e-45", "1e-400", "-0", "1E5"] {
        let answer = post(FEATURES, "application/json", features(&[row(value, DIM)])).await.expect(200);
        let expected: f32 = value.parse().unwrap();
        assert_eq!(answer.json()["features"][0][0].as_f64().unwrap() as f32, expected, "{value}");
    }
}

#[tokio::test]
async fn features_whose_logits_overflow_are_422_with_their_row() {
    let mut rows = feature_rows(70);
    rows[66] = vec![f32::MAX; DIM];
    let answer = shared().classify_features("?head=joint", &rows).await;
    assert!(answer.problem(422, "not_finite").contains("row 66"));
    // What was with it in the batch is not harmed.
    shared().classify_features("?head=joint", &rows[..66]).await.expect(200);
}

#[tokio::test]
async fn features_that_cannot_be_normalised_in_float32_are_422_with_their_row() {
    let mut rows = feature_rows(3);
    rows[1] = vec![1e19; DIM];
    // The same features have an answer where nothing is normalised.
    shared().classify_features("?head=joint", &rows).await.expect(200);
    let answer = shared().classify_features("?head=ncm", &rows).await;
    assert!(answer.problem(422, "not_finite").contains("row 1"), "{}", answer.text());
}

#[tokio::test]
async fn a_query_that_does_not_parse_or_is_out_of_range_is_422() {
    let queries = [
        "top_k=0",
        "top_k=-1",
        "top_k=1.5",
        "top_k=",
        "top_k=x",
        "top_k=99999999999999999999999",
        "top_k=1&top_k=2",
        "head=tau&tau=nan",
        "head=tau&tau=inf",
        "head=tau&tau=-0.1",
        "head=tau&tau=5.1",
        "head=tau&tau=6",
        "head=tau&tau=",
        "head=tau&tau=x",
        "head=tau&tau=1&tau=1",
        "head=tau&tau=1e999",
        "tau=0.5",
        "head=joint,crt&tau=0.5",
        "head=joint&tau=99",
        "head=joint,joint",
        "head=joint,joint@1",
        "head=crt,joint,crt",
        "head=",
        "head=joint,",
        "head=,joint",
        "head=joint,,crt",
        "head=joint&head=crt",
        "heads=joint",
        "unknown=1",
        "head=joint&x",
        "Head=joint",
    ];
    for query in queries {
        let answer = shared().classify(&format!("?{query}"), image("key", 0)).await;
        assert_eq!(answer.status, 422, "{query}: {}", answer.text());
        answer.problem(422, "invalid_query");
    }
    // What is wrong is named, also where only a number is wrong.
    for (query, key) in [("top_k=x", "`top_k`"), ("head=tau&tau=x", "`tau`"), ("heads=joint", "`heads`")] {
        let answer = shared().classify(&format!("?{query}"), image("key", 0)).await;
        assert!(answer.problem(422, "invalid_query").contains(key), "{query}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_404_and_the_code_says_what() {
    let app = shared();
    for head in ["none", "joint@x", "joint@", "@1", "a%2Fb", "jo%20int", "joint@1@1", "joint@-1", "JOINT", "joint%00"] {
        app.classify(&format!("?head={head}"), image("key", 0)).await.problem(404, "head_not_found");
    }
    for head in ["joint@2", "joint@0", "joint@4294967295", "crt,joint@7"] {
        app.classify(&format!("?head={head}"), image("key", 0)).await.problem(404, "version_not_found");
    }
    for model in ["none", "ICONS30", "icons30%20", "..%2F..", "%00", "%F0%9F%92%A9"] {
        for call in ["classify", "features"] {
            let path = format!("/v1/models/{model}/{call}");
            send(app.post(&path).body(image("key", 0))).await.problem(404, "model_not_found");
        }
        app.get(&format!("/v1/models/{model}")).await.problem(404, "model_not_found");
    }
}

#[tokio::test]
async fn another_content_type_is_415() {
    for content_type in
        ["text/plain", "application/xml", "application/x-npy", "multipart/mixed; boundary=x", "json", "", "image"]
    {
        for path in [CLASSIFY, FEATURES, "/v1/classify"] {
            let answer = post(path, content_type, image("key", 0)).await;
            assert_eq!(answer.status, 415, "{content_type}: {}", answer.text());
            answer.problem(415, "unsupported_media_type");
        }
    }
}

#[tokio::test]
async fn an_image_that_cannot_be_read_is_422_and_the_request_names_its_index() {
    for (bytes, said) in
        [(Vec::new(), "empty"), (b"text".to_vec(), "unknown"), (image("key", 0)[..300].to_vec(), "truncated")]
    {
        let detail = post(CLASSIFY, "image/png", bytes.clone()).await.problem(422, "invalid_image");
        assert!(detail.starts_with("image 0: ") && detail.contains(said), "{detail}");
        let good = image("key", 1);
        for (bad, files) in [
            (0, [bytes.clone(), good.clone(), good.clone()]),
            (1, [good.clone(), bytes.clone(), good.clone()]),
            (2, [good.clone(), good.clone(), bytes.clone()]),
        ] {
            let (content_type, body) = multipart(&files);
            let detail = post(FEATURES, &content_type, body).await.problem(422, "invalid_image");
            assert!(detail.starts_with(&format!("image {bad}: ")), "{detail}");
            let images: Vec<Value> = files.iter().map(|file| json!({ "b64": STANDARD.encode(file) })).collect();
            let answer = send(shared().post(CLASSIFY).json(&json!({ "images": images }))).await;
            assert!(answer.problem(422, "invalid_image").starts_with(&format!("image {bad}: ")));
        }
    }
}

#[tokio::test]
async fn of_two_bad_images_the_first_is_named() {
    let (content_type, body) = multipart(&[image("key", 1), b"text".to_vec(), Vec::new(), image("key", 2)]);
    for _ in 0..20 {
        let detail = post(CLASSIFY, &content_type, body.clone()).await.problem(422, "invalid_image");
        assert!(detail.starts_with("image 1: "), "{detail}");
    }
}

#[tokio::test]
async fn every_broken_image_is_refused_and_the_server_goes_on() {
    let mut n = 0;
    for entry in std::fs::read_dir(root().join("tests/data/broken")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if ["broken.json", "make_broken.py", "README.md"].contains(&name) {
            continue;
        }
        let answer = post(CLASSIFY, "application/octet-stream", std::fs::read(&path).unwrap()).await;
        assert_eq!(answer.status, 422, "{name}: {}", answer.text());
        answer.problem(422, "invalid_image");
        n += 1;
    }
    assert!(n > 50, "{n} files");
    assert_eq!(shared().classify("", image("rocket", 0)).await.predictions(0)[0]["label"], "rocket");
}

#[tokio::test]
async fn threads_that_decode_beside_the_workers_answer_the_same() {
    let app = Setup::new().config(|config| config.decode_threads = Some(2)).start();
    let files = [image("key", 0), image("rocket", 1), image("bell", 2)];
    let beside = app.classify("", image("key", 0)).await;
    let within = shared().classify("", image("key", 0)).await;
    assert_eq!(beside.expect(200).predictions(0), within.expect(200).predictions(0));
    for bad in 0..files.len() {
        let mut files = files.clone();
        files[bad].truncate(300);
        let (content_type, body) = multipart(&files);
        let request = app.post(CLASSIFY).header("content-type", content_type).body(body);
        assert!(send(request).await.problem(422, "invalid_image").starts_with(&format!("image {bad}: ")));
    }
    assert_eq!(app.metrics().await.get("equipoise_queue_depth{model=\"icons30\"}"), 0.0);
}

#[tokio::test]
async fn multipart_that_is_broken_is_400_and_without_parts_422() {
    let (content_type, whole) = multipart(&[image("key", 0)]);
    let without_boundary = "multipart/form-data";
    let other_boundary = "multipart/form-data; boundary=other";
    let broken = [
        (content_type.as_str(), whole[..whole.len() - 40].to_vec()),
        (&content_type, whole[..60].to_vec()),
        (&content_type, Vec::new()),
        (&content_type, b"nothing of the sort".to_vec()),
        (other_boundary, whole.clone()),
        (without_boundary, whole.clone()),
        ("multipart/form-data; boundary=", whole.clone()),
    ];
    for (index, (content_type, body)) in broken.into_iter().enumerate() {
        let answer = post(CLASSIFY, content_type, body).await;
        assert_eq!(answer.status, 400, "case {index}: {}", answer.text());
        answer.problem(400, "invalid_multipart");
    }
    let (content_type, empty) = multipart(&[]);
    post(CLASSIFY, &content_type, empty).await.problem(422, "invalid_body");
}

fn in_chunks(body: Vec<u8>) -> reqwest::Body {
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> = body.chunks(1000).map(|chunk| Ok(chunk.to_vec())).collect();
    reqwest::Body::wrap_stream(futures_util::stream::iter(chunks))
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_with_a_length_and_in_chunks_and_one_at_the_limit_passes() {
    let limits =
        |config: &mut equipoise::config::Config| (config.max_body_bytes, config.max_head_bytes) = (20_000, 20_000);
    let app = Setup::new().config(limits).start();
    let base = features(&[row("0", DIM)]);
    let padded = |n: usize| format!("{base}{}", " ".repeat(n - base.len())).into_bytes();
    let json = |body: reqwest::Body| app.post(CLASSIFY).header("content-type", "application/json").body(body);
    send(json(padded(20_000).into())).await.expect(200);
    send(json(in_chunks(padded(20_000)))).await.expect(200);
    for n in [20_001, 100_000] {
        send(json(padded(n).into())).await.problem(413, "body_too_large");
        send(json(in_chunks(padded(n)))).await.problem(413, "body_too_large");
        let head = app.admin("PUT", "heads/new").header("content-type", "application/octet-stream").body(padded(n));
        send(head).await.problem(413, "body_too_large");
        let patch = app.admin("PATCH", "heads/tau").header("content-type", "application/json").body(padded(n));
        send(patch).await.problem(413, "body_too_large");
    }
    let said = send(json(padded(20_001).into())).await.problem(413, "body_too_large");
    assert!(said.contains("20000"), "{said}");
}

#[tokio::test]
async fn json_of_operators_has_a_limit_of_its_own() {
    let app = shared();
    let patch = |n: usize| {
        let body = format!("{{\"nothing\": 1{}}}", " ".repeat(n - 14));
        app.admin("PATCH", "heads/tau").header("content-type", "application/json").body(body)
    };
    send(patch(1 << 20)).await.problem(422, "invalid_body");
    let said = send(patch((1 << 20) + 1)).await.problem(413, "body_too_large");
    assert!(said.contains("1048576"), "{said}");
}

#[tokio::test]
async fn the_answer_to_a_refused_upload_of_40_mb_arrives() {
    let app = shared();
    let body = vec![0_u8; 40_000_000];
    for request in [
        app.post(CLASSIFY),
        app.post("/v1/models/none/classify"),
        app.post("/nothing"),
        app.request("PUT", &format!("{HEADS}/x")),
        app.request("GET", CLASSIFY),
        app.post(CLASSIFY).header("content-type", "text/plain"),
    ] {
        let with_length = send(request.try_clone().unwrap().body(body.clone())).await;
        let chunked = send(request.body(in_chunks(body.clone()))).await;
        for answer in [with_length, chunked] {
            assert!((400..500).contains(&answer.status), "{}", answer.status);
            answer.problem(answer.status, answer.json()["code"].as_str().unwrap());
        }
    }
}

#[tokio::test]
async fn more_images_than_the_queue_can_hold_are_413() {
    let app = Setup::new().config(|config| config.queue_capacity = 8).start();
    for (n, fits) in [(8, true), (9, false), (40, false)] {
        let files: Vec<Vec<u8>> = (0..n).map(|index| image("key", index % 18)).collect();
        let (content_type, body) = multipart(&files);
        let images = send(app.post(CLASSIFY).header("content-type", content_type).body(body)).await;
        let rows = app.classify_features("", &feature_rows(n)).await;
        for answer in [images, rows] {
            if fits {
                answer.expect(200);
            } else {
                answer.problem(413, "too_many_images");
            }
        }
    }
    let (content_type, body) = multipart(&vec![Vec::new(); 10_000]);
    send(app.post(CLASSIFY).header("content-type", content_type).body(body)).await.problem(413, "too_many_images");
}

#[tokio::test]
async fn a_timeout_that_is_no_number_above_zero_is_422() {
    for value in ["0", "-1", "1.5", "x", "", "99999999999999999999999"] {
        for path in [CLASSIFY, FEATURES] {
            let request = shared().post(path).header("x-request-timeout-ms", value).body(image("key", 0));
            send(request).await.problem(422, "invalid_header");
        }
    }
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_408_when_its_time_is_over() {
    let request = shared().post(CLASSIFY).header("x-request-timeout-ms", "200");
    let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(vec![1_u8; 10])]);
    let never_ending = futures_util::StreamExt::chain(begun, futures_util::stream::pending());
    send(request.body(reqwest::Body::wrap_stream(never_ending))).await.problem(408, "body_timeout");
}

/// What the admin API makes of bodies, all of which leave everything as it is.
#[tokio::test]
async fn admin_bodies_are_refused_and_change_nothing() {
    let app = Setup::new().start();
    let before = app.admin("GET", "heads");
    let before = send(before).await.expect(200).json();
    let json_cases: &[(&str, &str, &str, u16, &str)] = &[
        ("PATCH", "heads/tau", "{\"tau\": NaN}", 400, "invalid_json"),
        ("PATCH", "heads/tau", "{\"tau\": Infinity}", 400, "invalid_json"),
        ("PATCH", "heads/tau", "", 400, "invalid_json"),
        ("PATCH", "heads/tau", "{\"tau\": 0.1} x", 400, "invalid_json"),
        ("PATCH", "heads/tau", "{\"tau\": 1e999}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"tau\": null}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"tau\": \"0.5\"}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"taus\": 0.5}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"tau\": 0.5, \"tau\": 0.6}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"bias\": \"none\"}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"bias\": null}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"temperature\": null}", 422, "invalid_body"),
        ("PATCH", "heads/tau", "[]", 422, "invalid_body"),
        ("PATCH", "heads/tau", "[0.5]", 422, "invalid_body"),
        ("PUT", "default-head", "[\"crt\"]", 422, "invalid_body"),
        ("PUT", "heads/new", "[\"tau_norm\", \"joint\"]", 422, "invalid_body"),
        ("PATCH", "heads/tau", "null", 422, "invalid_body"),
        ("PATCH", "heads/tau", "{\"tau\": -0.01}", 422, "invalid_setting"),
        ("PATCH", "heads/tau", "{\"tau\": 5.01}", 422, "invalid_setting"),
        ("PATCH", "heads/tau", "{\"tau\": 1e308}", 422, "invalid_setting"),
        ("PATCH", "heads/tau", "{\"temperature\": 0}", 422, "invalid_setting"),
        ("PATCH", "heads/tau", "{\"temperature\": -1}", 422, "invalid_setting"),
        ("PATCH", "heads/tau", "{\"tau\": 0.3, \"temperature\": 0}", 422, "invalid_setting"),
        ("PATCH", "heads/tau", "{\"tau\": 9, \"bias\": \"keep\", \"temperature\": 2}", 422, "invalid_setting"),
        ("PATCH", "heads/joint", "{\"tau\": 0.5}", 422, "invalid_setting"),
        ("PATCH", "heads/lws", "{\"bias\": \"keep\"}", 422, "invalid_setting"),
        ("PATCH", "heads/ncm", "{\"temperature\": 2, \"tau\": 0.5}", 422, "invalid_setting"),
        ("PATCH", "heads/none", "{\"tau\": 0.5}", 404, "head_not_found"),
        ("PATCH", "heads/tau@9", "{\"tau\": 0.5}", 404, "version_not_found"),
        ("PATCH", "heads/t%20u", "{\"tau\": 0.5}", 404, "invalid_name"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\"}", 422, "invalid_body"),
        ("PUT", "heads/new", "{\"base\": \"joint\"}", 422, "invalid_body"),
        ("PUT", "heads/new", "{\"kind\": \"magic\", \"base\": \"joint\"}", 422, "invalid_body"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"joint\", \"x\": 1}", 422, "invalid_body"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"no name\"}", 422, "invalid_body"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"\"}", 422, "invalid_body"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"none\"}", 404, "head_not_found"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"joint@2\"}", 404, "version_not_found"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"joint\", \"tau\": 6}", 422, "invalid_setting"),
        ("PUT", "heads/new", "{\"kind\": \"tau_norm\", \"base\": \"ncm\"}", 422, "invalid_base"),
        ("PUT", "heads/new", "{\"kind\": \"crt\", \"base\": \"joint\"}", 422, "invalid_base"),
        ("PUT", "heads/new", "{", 400, "invalid_json"),
        ("PUT", "heads/-new", "{\"kind\": \"tau_norm\", \"base\": \"joint\"}", 404, "invalid_name"),
        ("PUT", "heads/new@2", "{\"kind\": \"tau_norm\", \"base\": \"joint\"}", 404, "invalid_name"),
        ("PUT", "default-head", "{\"head\": \"none\"}", 404, "head_not_found"),
        ("PUT", "default-head", "{\"head\": \"crt\", \"version\": 2}", 404, "version_not_found"),
        ("PUT", "default-head", "{\"head\": \"c t\"}", 422, "invalid_body"),
        ("PUT", "default-head", "{\"head\": 3}", 422, "invalid_body"),
        ("PUT", "default-head", "{\"head\": \"crt\", \"version\": null}", 422, "invalid_body"),
        ("PUT", "default-head", "{\"head\": \"crt\", \"version\": -1}", 422, "invalid_body"),
        ("PUT", "default-head", "{\"head\": \"crt\", \"x\": 1}", 422, "invalid_body"),
        ("PUT", "default-head", "{}", 422, "invalid_body"),
        ("DELETE", "heads/none", "", 404, "head_not_found"),
        ("DELETE", "heads/crt@2", "", 404, "version_not_found"),
        ("DELETE", "heads/crt?version=2", "", 404, "version_not_found"),
        ("DELETE", "heads/crt@1?version=2", "", 422, "invalid_query"),
        ("DELETE", "heads/crt?version=x", "", 422, "invalid_query"),
        ("DELETE", "heads/crt?versions=1", "", 422, "invalid_query"),
        ("DELETE", "heads/c%20t", "", 404, "invalid_name"),
        ("DELETE", "heads/joint", "", 409, "head_is_default"),
        ("DELETE", "heads/joint@1", "", 409, "head_is_default"),
        ("GET", "heads/none", "", 404, "head_not_found"),
        ("GET", "heads/crt@2", "", 404, "version_not_found"),
        ("GET", "heads/c%20t", "", 404, "invalid_name"),
    ];
    for (method, path, body, status, code) in json_cases {
        let request = app.admin(method, path).header("content-type", "application/json").body(*body);
        let answer = send(request).await;
        assert_eq!(answer.status, *status, "{method} {path} {body}: {}", answer.text());
        answer.problem(*status, code);
    }
    for (method, path) in [("PATCH", "heads/tau"), ("PUT", "heads/new"), ("PUT", "default-head")] {
        let request = app.admin(method, path).header("content-type", "text/plain").body("{\"head\": \"crt\"}");
        send(request).await.problem(415, "unsupported_media_type");
    }
    for (file, code) in [
        (Vec::new(), "invalid_head"),
        (b"no head".to_vec(), "invalid_head"),
        (head_file_of(CLASSES, DIM, 1, None)[..5000].to_vec(), "invalid_head"),
        (head_file_of(CLASSES, DIM, 1, Some(&[1; 29])), "invalid_head"),
        (head_file_of(29, DIM, 1, None), "incompatible_head"),
        (head_file_of(CLASSES, 64, 1, None), "incompatible_head"),
    ] {
        app.put_head("new", file).await.problem(422, code);
    }
    for path in ["/admin/v1/models/none/heads", "/admin/v1/models/none/heads/joint", "/admin/v1/models/n%20/heads"] {
        send(app.request("GET", path).bearer_auth(TOKEN)).await.problem(404, "model_not_found");
    }
    assert_eq!(send(app.admin("GET", "heads")).await.expect(200).json(), before);
    classify_still_works(&app).await;
}

async fn classify_still_works(app: &TestApp) {
    assert_eq!(app.classify("", image("shield", 0)).await.predictions(0)[0]["label"], "shield");
}
