//! Classify and features: every form of a body, every part of the query, and what the answer says.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{feature_rows, head_file};
use crate::app::{Answer, CLASSES, DIM, Setup, StandIn, copy_of_icons30, image, multipart, send, shared};

const CLASSIFY: &str = "/v1/models/icons30/classify";
const FEATURES: &str = "/v1/models/icons30/features";

fn close(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= tolerance,
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b, tolerance))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| close(a, b, tolerance)))
        }
        (a, b) => a == b,
    }
}

fn labels(answer: &Answer) -> Vec<String> {
    (0..answer.n_images())
        .map(|image| answer.results(image)[0]["predictions"][0]["label"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_image_is_classified_under_every_content_type_that_may_stand_for_one() {
    let app = shared();
    let mut answers = Vec::new();
    let types =
        ["image/png", "image/jpeg", "IMAGE/PNG; x=y", "application/octet-stream", "application/x-www-form-urlencoded"];
    for content_type in types.map(Some).into_iter().chain([None]) {
        let request = app.post(CLASSIFY).body(image("printer", 3));
        let request = content_type.map_or(request.try_clone().unwrap(), |value| request.header("content-type", value));
        answers.push(send(request).await.predictions(0));
    }
    assert_eq!(answers[0][0]["label"], "printer");
    assert_eq!(answers[0].len(), 5);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

#[tokio::test]
async fn multipart_and_base64_answer_in_the_order_of_the_images() {
    let names = ["heart", "key", "bell", "star", "moon", "heart", "book"];
    let files: Vec<Vec<u8>> = names.iter().map(|label| image(label, 5)).collect();
    let mut one_by_one = Vec::new();
    for file in &files {
        one_by_one.push(shared().classify("", file.clone()).await.predictions(0));
    }
    let (content_type, body) = multipart(&files);
    let parts = send(shared().post(CLASSIFY).header("content-type", content_type).body(body)).await;
    let images: Vec<Value> = files.iter().map(|file| json!({ "b64": STANDARD.encode(file) })).collect();
    let encoded = send(shared().post(CLASSIFY).json(&json!({ "images": images }))).await;
    for answer in [&parts, &encoded] {
        assert_eq!(answer.n_images(), names.len());
        for (index, expected) in one_by_one.iter().enumerate() {
            // A batch sums in another order than a single image.
            assert!(close(&json!(answer.predictions(index)), &json!(expected), 1e-4), "image {index}");
        }
    }
    assert_eq!(labels(&parts)[2], "bell");
}

#[tokio::test]
async fn the_library_of_reqwest_sends_a_multipart_that_is_understood() {
    let part = |label: &str| reqwest::multipart::Part::bytes(image(label, 1)).file_name(format!("{label}.png"));
    let form = reqwest::multipart::Form::new().part("a", part("clock")).part("a", part("trophy"));
    let answer = send(shared().post(CLASSIFY).multipart(form)).await.expect(200);
    assert_eq!(labels(&answer), ["clock", "trophy"]);
}

#[tokio::test]
async fn several_heads_answer_in_the_order_asked_for_and_as_they_do_alone() {
    let app = shared();
    let rows = feature_rows(3);
    let heads = [("ncm", "ncm"), ("tau", "tau_norm"), ("joint", "joint"), ("lws", "lws"), ("crt", "crt")];
    let together = app.classify_features("?head=ncm,tau@1,joint,lws,crt&top_k=30", &rows).await;
    for image in 0..rows.len() {
        let results = together.results(image);
        for (result, (head, kind)) in results.iter().zip(heads) {
            assert_eq!((&result["head"], &result["kind"], &result["version"]), (&json!(head), &json!(kind), &json!(1)));
            assert_eq!(result.get("tau").is_some(), head == "tau");
            let alone = app.classify_features(&format!("?head={head}&top_k=30"), &rows[image..=image]).await.results(0);
            assert!(close(result, &alone[0], 1e-4), "{head}: {result} and {alone:?}");
        }
        assert_eq!(results.len(), heads.len());
    }
}

#[tokio::test]
async fn probabilities_are_the_softmax_of_all_logits_in_descending_order() {
    for head in ["joint", "crt", "lws", "ncm", "tau"] {
        let answer = shared().classify_features(&format!("?head={head}&top_k=30"), &feature_rows(2)).await;
        for image in 0..2 {
            let predictions = answer.predictions(image);
            let numbers = |field: &str| predictions.iter().map(|p| p[field].as_f64().unwrap()).collect::<Vec<_>>();
            let (probabilities, logits) = (numbers("probability"), numbers("logit"));
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6);
            assert!(logits.is_sorted_by(|a, b| a >= b) && probabilities.is_sorted_by(|a, b| a >= b));
            let mut classes: Vec<u64> = predictions.iter().map(|p| p["class"].as_u64().unwrap()).collect();
            classes.sort_unstable();
            assert!(classes.into_iter().eq(0..CLASSES as u64));
            let sum: f64 = logits.iter().map(|z| (z - logits[0]).exp()).sum();
            for (p, z) in probabilities.iter().zip(&logits) {
                assert!((p - (z - logits[0]).exp() / sum).abs() < 1e-5, "{head}");
            }
        }
    }
}

#[tokio::test]
async fn predictions_carry_the_label_and_the_shot_of_their_class() {
    let read = |file: &str| std::fs::read_to_string(crate::app::icons30().join(file)).unwrap();
    let labels: Vec<String> = read("labels.txt").lines().map(str::to_owned).collect();
    let counts: Vec<u64> = read("train_counts.csv")
        .lines()
        .skip(1)
        .map(|line| line.rsplit(',').next().unwrap().parse().unwrap())
        .collect();
    let predictions = shared().classify_features("?top_k=30", &feature_rows(1)).await.predictions(0);
    for prediction in predictions {
        let class = prediction["class"].as_u64().unwrap() as usize;
        let shot = match counts[class] {
            0..20 => "few",
            20..=100 => "medium",
            _ => "many",
        };
        assert_eq!((&prediction["label"], &prediction["shot"]), (&json!(labels[class]), &json!(shot)));
        assert_eq!(prediction.as_object().unwrap().len(), 5);
    }
}

#[tokio::test]
async fn top_k_counts_from_one_to_all_classes() {
    for (query, expected) in [("", 5), ("?top_k=1", 1), ("?top_k=7", 7), ("?top_k=30", 30), ("?top_k=1000000", 30)] {
        let answer = shared().classify_features(query, &feature_rows(1)).await;
        assert_eq!(answer.predictions(0).len(), expected, "{query}");
    }
}

#[tokio::test]
async fn the_tau_of_a_request_is_that_requests_alone_and_the_answer_says_it() {
    let app = shared();
    let rows = feature_rows(1);
    let of = async |query: &str| app.classify_features(query, &rows).await.results(0);
    let before = of("?head=tau&top_k=30").await;
    assert_eq!(before[0]["tau"], 0.6);
    for tau in [0.0, 0.25, 1.5, 5.0] {
        let results = of(&format!("?head=tau,joint&tau={tau}&top_k=30")).await;
        assert_eq!(results[0]["tau"], tau);
        assert_ne!(results[0]["predictions"], before[0]["predictions"]);
        assert!(results[1].get("tau").is_none());
        assert_eq!(results[1]["predictions"], of("?head=joint&top_k=30").await[0]["predictions"]);
    }
    assert_eq!(of("?head=tau&top_k=30").await, before);
}

#[tokio::test]
async fn tau_zero_with_the_bias_dropped_is_the_joint_head_without_its_bias() {
    let zero = vec![vec![0.0; DIM]];
    let logits =
        |answer: &Answer| answer.predictions(0).iter().map(|p| p["logit"].as_f64().unwrap()).collect::<Vec<_>>();
    let tau = shared().classify_features("?head=tau&tau=0&top_k=30", &zero).await;
    assert!(logits(&tau).iter().all(|&z| z == 0.0));
    let joint = shared().classify_features("?head=joint&top_k=30", &zero).await;
    assert!(logits(&joint).iter().any(|&z| z != 0.0));
}

#[tokio::test]
async fn without_a_model_in_the_path_the_first_model_directory_answers() {
    let copy = copy_of_icons30();
    let toml = std::fs::read_to_string(copy.path().join("model.toml")).unwrap();
    let toml =
        toml.replace("name = \"icons30\"", "name = \"a-first\"").replace("default = \"joint\"", "default = \"ncm\"");
    std::fs::write(copy.path().join("model.toml"), toml).unwrap();
    for (models, default, head) in [
        ([copy.path().to_owned(), crate::app::icons30()], "a-first", "ncm"),
        ([crate::app::icons30(), copy.path().to_owned()], "icons30", "joint"),
    ] {
        let app = Setup::new().models(&[&models[0], &models[1]]).start();
        let answer = send(app.post("/v1/classify").body(image("key", 0))).await.expect(200).json();
        assert_eq!(answer["model"], default);
        assert_eq!(answer["images"][0]["results"][0]["head"], head);
        let list = app.get("/v1/models").await.expect(200).json();
        assert_eq!(list["default"], default);
        assert_eq!(list["models"].as_array().unwrap().len(), 2);
        app.shutdown();
    }
}

#[tokio::test]
async fn a_class_without_training_samples_never_appears() {
    let app = Setup::new().start();
    let mut counts = [50; CLASSES];
    (counts[4], counts[29]) = (0, 0);
    app.put_head("masked", head_file(1, Some(&counts))).await.expect(201);
    app.put_head("open", head_file(1, None)).await.expect(201);
    let answer = app.classify_features("?head=masked,open&top_k=30", &feature_rows(4)).await;
    for image in 0..4 {
        let results = answer.results(image);
        let classes = |result: &Value| -> Vec<u64> {
            result["predictions"].as_array().unwrap().iter().map(|p| p["class"].as_u64().unwrap()).collect()
        };
        let (masked, open) = (classes(&results[0]), classes(&results[1]));
        assert_eq!((masked.len(), open.len()), (28, 30));
        assert!(masked.into_iter().eq(open.into_iter().filter(|class| ![4, 29].contains(class))));
        let sum: f64 =
            results[0]["predictions"].as_array().unwrap().iter().map(|p| p["probability"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }
    let few = app.classify_features("?head=masked&top_k=28", &feature_rows(1)).await.predictions(0);
    assert_eq!(few.len(), 28);
}

/// The rows of a version 1.0 `.npy` file of little-endian float32 in C order.
fn read_npy(file: &[u8]) -> Vec<Vec<f32>> {
    assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = std::str::from_utf8(&file[10..10 + length]).unwrap();
    assert_eq!((10 + length) % 64, 0);
    assert!(header.contains("'descr': '<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = &header[header.find('(').unwrap() + 1..header.find(')').unwrap()];
    let shape: Vec<usize> =
        shape.split(',').filter(|d| !d.trim().is_empty()).map(|d| d.trim().parse().unwrap()).collect();
    let values: Vec<f32> =
        file[10 + length..].chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(values.len(), shape[0] * shape[1]);
    values.chunks(shape[1]).map(<[f32]>::to_vec).collect()
}

#[tokio::test]
async fn features_are_the_same_as_json_and_as_npy_and_give_the_logits_of_the_image() {
    let app = shared();
    let files = [image("rocket", 2), image("eye", 9), image("lock", 7)];
    let (content_type, body) = multipart(&files);
    let ask = |accept: &'static str| {
        send(app.post(FEATURES).header("content-type", &content_type).header("accept", accept).body(body.clone()))
    };
    let as_json = ask("application/json").await.expect(200);
    assert_eq!(as_json.json()["feature_dim"], DIM);
    let rows: Vec<Vec<f32>> = serde_json::from_value(as_json.json()["features"].clone()).unwrap();
    assert_eq!((rows.len(), rows[0].len()), (3, DIM));
    let as_npy = ask("application/x-npy").await.expect(200);
    assert_eq!(as_npy.header("content-type"), Some("application/x-npy"));
    assert_eq!(read_npy(&as_npy.body), rows);
    let listed = ask("text/html, application/x-npy;q=0.9").await;
    assert_eq!(listed.header("content-type"), Some("application/x-npy"));

    let heads = "?head=joint,crt,lws,ncm,tau&top_k=30";
    let of_images = send(app.post(&format!("{CLASSIFY}{heads}")).header("content-type", content_type).body(body)).await;
    let of_features = app.classify_features(heads, &rows).await;
    for row in 0..3 {
        assert!(close(&json!(of_images.results(row)), &json!(of_features.results(row)), 1e-4), "row {row}");
    }
}

#[tokio::test]
async fn features_sent_to_the_features_route_come_back_as_they_are() {
    // Few are read and written where requests are, and many aside.
    for n in [2, 200] {
        let rows = feature_rows(n);
        let answer = send(shared().post(FEATURES).json(&json!({ "features": rows }))).await.expect(200);
        assert_eq!(serde_json::from_value::<Vec<Vec<f32>>>(answer.json()["features"].clone()).unwrap(), rows);
    }
}

#[tokio::test]
async fn more_feature_rows_than_one_batch_takes_keep_their_order() {
    let rows = feature_rows(200);
    let answer = shared().classify_features("?head=crt", &rows).await;
    assert_eq!(answer.n_images(), 200);
    for row in [0, 63, 64, 127, 128, 199] {
        let alone = shared().classify_features("?head=crt", &rows[row..=row]).await.predictions(0);
        assert!(close(&json!(answer.predictions(row)), &json!(alone), 1e-4), "row {row}");
    }
}

#[tokio::test]
async fn a_request_id_is_echoed_if_it_is_one_and_else_made() {
    let ask = |id: &'static str| send(shared().request("GET", "/livez").header("x-request-id", id));
    for id in ["a", "7d1b2c9e-0000-4000-8000-000000000000", "trace:1/2"] {
        assert_eq!(ask(id).await.header("x-request-id"), Some(id));
    }
    let long = "a".repeat(129).leak();
    for id in ["", "two words", long] {
        let made = ask(id).await;
        let made = made.header("x-request-id").unwrap();
        assert!(made != id && made.len() > 8, "{made}");
    }
    let first = shared().get("/livez").await;
    let second = shared().get("/v1/nowhere").await;
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn every_answer_says_how_long_its_phases_took() {
    let answer = shared().classify("", image("cloud", 0)).await.expect(200).json();
    let timing = answer["timing_ms"].as_object().unwrap();
    let phases = ["preprocess", "queue", "backbone", "head", "total"];
    assert_eq!(timing.len(), phases.len());
    assert!(phases.iter().all(|phase| timing[*phase].as_f64().unwrap() >= 0.0));
    assert!(timing["total"].as_f64().unwrap() >= timing["backbone"].as_f64().unwrap());
    assert!(timing["backbone"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn a_patient_timeout_changes_nothing() {
    let request = shared().post(CLASSIFY).header("x-request-timeout-ms", "999999999999");
    send(request.body(image("bug", 0))).await.expect(200);
}

#[tokio::test]
async fn the_model_is_described() {
    let model = shared().get("/v1/models/icons30").await.expect(200).json();
    assert_eq!(
        (&model["name"], &model["classes"], &model["feature_dim"]),
        (&json!("icons30"), &json!(CLASSES), &json!(DIM))
    );
    assert_eq!((&model["default_head"], &model["provider"]), (&json!("joint"), &json!("CPUExecutionProvider")));
    assert_eq!(model["preprocess"]["resize"], 36);
    let heads: Vec<&str> =
        model["heads"].as_array().unwrap().iter().map(|head| head["head"].as_str().unwrap()).collect();
    assert_eq!(heads, ["crt", "joint", "lws", "ncm", "tau"]);
    let tau = &model["heads"][4];
    assert_eq!((&tau["kind"], &tau["version"], &tau["default"]), (&json!("tau_norm"), &json!(1), &json!(false)));
    assert_eq!(tau["settings"], json!({ "tau": 0.6, "bias": "drop", "temperature": 1.0 }));
}

#[tokio::test]
async fn one_pass_of_the_backbone_serves_all_heads_of_a_request() {
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    app.classify("?head=joint,crt,lws,ncm,tau", image("gift", 0)).await.expect(200);
    assert_eq!(stand_in.runs(), [1]);
    app.classify_features("?head=joint,crt", &feature_rows(2)).await.expect(200);
    assert_eq!(stand_in.runs(), [1]);
}
