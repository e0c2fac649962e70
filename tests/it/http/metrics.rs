//! What is counted, and what never becomes a label.

use std::collections::BTreeSet;

use serde_json::json;

use super::{feature_rows, head_file};
use crate::app::{Samples, Setup, TestApp, image, multipart, root, send};

const CLASSIFY: &str = "/v1/models/icons30/classify";

/// A set of requests whose counts are known, and which touches every family.
async fn known_requests(app: &TestApp) -> Samples {
    app.classify("", image("key", 0)).await.expect(200);
    let (content_type, body) = multipart(&[image("key", 1), image("star", 1), image("book", 1)]);
    let path = format!("{CLASSIFY}?head=tau,joint");
    send(app.post(&path).header("content-type", content_type).body(body)).await.expect(200);
    app.classify_features("?head=crt", &feature_rows(2)).await.expect(200);
    send(app.post("/v1/models/icons30/features").body(image("key", 0))).await.expect(200);
    app.classify("", b"no image".to_vec()).await.expect(422);
    app.classify("", Vec::new()).await.expect(422);
    app.classify("?head=none", image("key", 0)).await.expect(404);
    app.get("/nothing/at/all").await.expect(404);
    app.get("/also-nothing").await.expect(404);
    app.get(CLASSIFY).await.expect(405);
    app.get("/admin/v1/models/icons30/heads").await.expect(401);
    send(app.request("GET", "/admin/v1/models/icons30/heads").bearer_auth("x")).await.expect(403);
    app.classify_features("", &feature_rows(9)).await.expect(413);
    app.patch("tau", json!({ "tau": 0.75 })).await.expect(200);
    app.put_head("new", head_file(1, None)).await.expect(201);
    app.put_head("new", head_file(2, None)).await.expect(201);
    app.delete_head("new@1").await.expect(204);
    app.metrics().await
}

fn app() -> TestApp {
    Setup::new().config(|config| config.queue_capacity = 8).start()
}

#[tokio::test]
async fn counters_are_exactly_what_was_asked() {
    let app = app();
    let samples = known_requests(&app).await;
    let requests = |route: &str, status: u16| {
        samples.get(&format!("equipoise_requests_total{{route=\"{route}\",status=\"{status}\"}}"))
    };
    for (route, status, expected) in [
        ("/v1/models/{model}/classify", 200, 3.0),
        ("/v1/models/{model}/classify", 422, 2.0),
        ("/v1/models/{model}/classify", 404, 1.0),
        ("/v1/models/{model}/classify", 405, 1.0),
        ("/v1/models/{model}/classify", 413, 1.0),
        ("/v1/models/{model}/features", 200, 1.0),
        ("unmatched", 404, 2.0),
        ("/admin/v1/models/{model}/heads", 401, 1.0),
        ("/admin/v1/models/{model}/heads", 403, 1.0),
        ("/admin/v1/models/{model}/heads/{head}", 200, 1.0),
        ("/admin/v1/models/{model}/heads/{head}", 201, 2.0),
        ("/admin/v1/models/{model}/heads/{head}", 204, 1.0),
        // Itself is not answered yet.
        ("/metrics", 200, 0.0),
    ] {
        assert_eq!(requests(route, status), expected, "{route} {status}\n{}", samples.0);
    }
    for (sample, expected) in [
        ("equipoise_request_duration_seconds_count{route=\"/v1/models/{model}/classify\"}", 8.0),
        ("equipoise_requests_in_flight", 1.0),
        ("equipoise_rejected_total{reason=\"unauthorized\"}", 1.0),
        ("equipoise_rejected_total{reason=\"forbidden\"}", 1.0),
        ("equipoise_rejected_total{reason=\"too_many_images\"}", 1.0),
        ("equipoise_image_errors_total{reason=\"empty\"}", 1.0),
        ("equipoise_image_errors_total{reason=\"unknown_format\"}", 1.0),
        ("equipoise_phase_duration_seconds_count{model=\"icons30\",phase=\"preprocess\"}", 5.0),
        ("equipoise_batch_size_sum{model=\"icons30\"}", 7.0),
        ("equipoise_queue_depth{model=\"icons30\"}", 0.0),
        ("equipoise_queue_capacity{model=\"icons30\"}", 8.0),
        ("equipoise_top1_probability_count{head=\"joint\",model=\"icons30\"}", 4.0),
        ("equipoise_top1_probability_count{head=\"tau\",model=\"icons30\"}", 3.0),
        ("equipoise_top1_probability_count{head=\"crt\",model=\"icons30\"}", 2.0),
        ("equipoise_top1_probability_count{head=\"ncm\",model=\"icons30\"}", 0.0),
        ("equipoise_head_tau{head=\"tau\",model=\"icons30\"}", 0.75),
        ("equipoise_head_info{head=\"new\",kind=\"joint\",model=\"icons30\",version=\"1\"}", 0.0),
        ("equipoise_head_info{head=\"new\",kind=\"joint\",model=\"icons30\",version=\"2\"}", 1.0),
        ("equipoise_head_info{head=\"tau\",kind=\"tau_norm\",model=\"icons30\",version=\"1\"}", 1.0),
        ("equipoise_model_info{model=\"icons30\",provider=\"CPUExecutionProvider\"}", 1.0),
        ("equipoise_ready", 1.0),
    ] {
        assert_eq!(samples.get(sample), expected, "{sample}\n{}", samples.0);
    }
    let shots = ["many", "medium", "few", "unknown"];
    let predictions = |head: &str| -> f64 {
        let of = |shot| {
            samples.get(&format!("equipoise_predictions_total{{head=\"{head}\",model=\"icons30\",shot=\"{shot}\"}}"))
        };
        shots.map(of).iter().sum()
    };
    assert_eq!(["joint", "tau", "crt", "ncm"].map(predictions), [4.0, 3.0, 2.0, 0.0]);
}

#[tokio::test]
async fn failures_and_refusals_are_counted_from_zero() {
    let samples = app().metrics().await;
    let guide = std::fs::read_to_string(root().join("docs/METRICS.md")).unwrap();
    let documented = |row: &str| -> BTreeSet<String> {
        let row = guide.lines().find(|line| line.starts_with(row)).unwrap();
        row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    for (name, row) in [
        ("equipoise_rejected_total", "| `reason` of rejected |"),
        ("equipoise_image_errors_total", "| `reason` of image errors |"),
    ] {
        let reasons: BTreeSet<String> = samples
            .0
            .lines()
            .filter_map(|line| {
                Some(line.strip_prefix(name)?.strip_prefix("{reason=\"")?.strip_suffix("\"} 0")?.to_owned())
            })
            .collect();
        assert_eq!(reasons, documented(row), "{name}");
    }
    for (route, _) in equipoise::http::ROUTES {
        let sample = format!("equipoise_requests_total{{route=\"{route}\",status=\"500\"}} 0");
        assert!(samples.0.contains(&sample), "{sample}");
    }
}

/// Families that have no series here.
const ONLY_ON_A_GPU: [&str; 1] = ["equipoise_device_memory_bytes"];

#[tokio::test]
async fn the_families_are_those_of_the_documentation() {
    let samples = known_requests(&app()).await;
    let served: BTreeSet<&str> = samples.families().into_iter().collect();
    let text = std::fs::read_to_string(root().join("docs/METRICS.md")).unwrap();
    let first_cell = |line: &'static str| -> Option<&'static str> {
        let cell = line.trim().strip_prefix('|')?.split('|').next()?;
        let name = cell.split('`').nth(1)?;
        (name.starts_with("equipoise_") || name.starts_with("process_")).then_some(name)
    };
    let mut documented: BTreeSet<&str> = text.leak().lines().filter_map(first_cell).collect();
    let alerts = include_str!("../../../docs/alerts.yml");
    let is_of_a_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let asked_for: BTreeSet<&str> =
        alerts.split(|c| !is_of_a_name(c)).filter(|word| word.starts_with("equipoise_")).collect();
    assert!(asked_for.len() > 8 && asked_for.is_subset(&documented), "{asked_for:?}");
    for name in ONLY_ON_A_GPU {
        assert!(documented.remove(name) && !served.contains(name), "{name}");
    }
    assert!(served.len() > 15);
    assert_eq!(served, documented);
}

#[tokio::test]
async fn nothing_that_a_caller_invents_becomes_a_label() {
    let app = app();
    let invented = "zq7invented";
    for path in
        ["/{x}", "/v1/models/{x}", "/v1/models/{x}/classify", "/admin/{x}", "/admin/v1/models/{x}/heads/{x}", "/v2/{x}"]
    {
        let path = path.replace("{x}", invented);
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "ZQ7INVENTED"] {
            let request = app.request(method, &path).header("x-request-id", invented).header("user-agent", invented);
            send(request.try_clone().unwrap()).await;
            send(request.bearer_auth(crate::app::TOKEN)).await;
        }
    }
    app.classify(&format!("?head={invented}"), image("key", 0)).await.expect(404);
    app.classify(&format!("?{invented}=1"), image("key", 0)).await.expect(422);
    app.classify("", format!("GIF89a{invented}")).await.expect(422);
    send(app.post(CLASSIFY).header("content-type", format!("text/{invented}")).body("")).await.expect(415);
    app.patch(invented, json!({ "tau": 0.5 })).await.expect(404);
    app.derive_head("fine", json!({ "kind": "tau_norm", "base": invented })).await.expect(404);
    app.activate(json!({ "head": invented })).await.expect(404);
    let samples = known_requests(&app).await;
    assert!(!samples.0.to_lowercase().contains(invented), "{}", samples.0);
    let routes: BTreeSet<String> =
        samples.labels().into_iter().filter(|(name, _)| name == "route").map(|(_, route)| route).collect();
    let known: BTreeSet<&str> = equipoise::http::ROUTES.iter().map(|(path, _)| *path).chain(["unmatched"]).collect();
    assert!(routes.iter().all(|route| known.contains(route.as_str())), "{routes:?}");
}
