//! `--tune`: what is measured, kept and shown.

use serde_json::{Value, json};

use crate::app::{Setup, TestApp, image};

/// Tunes batches of up to 2 on one session, which does not take long.
fn setup() -> Setup {
    Setup::new().config(|config| {
        (config.tune, config.max_batch_size) = (true, Some(2));
    })
}

async fn shown(app: &TestApp) -> Value {
    let answer = app.get("/v1/models/icons30").await.expect(200).json();
    json!([answer["sessions"], answer["threads"], answer["max_batch_size"], answer["tuning"]])
}

#[tokio::test]
async fn the_result_is_shown_and_kept_until_something_changes() {
    let setup = setup();
    let kept = setup.state.path().join("models/icons30/tuning.json");
    let app = setup.start();
    let first = shown(&app).await;
    assert_eq!(first.as_array().unwrap()[..3], [json!(1), json!(1), json!(2)]);
    let [point] = first[3].as_array().unwrap().as_slice() else { panic!("{first}") };
    assert!(point["images_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!((&point["sessions"], &point["threads"], &point["max_batch_size"]), (&json!(1), &json!(1), &json!(2)));
    app.classify("", image("key", 0)).await.expect(200);
    drop(app);

    // Not measured again: a speed that no machine has is shown as it is kept.
    let mut tuning: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    tuning["measured"][0]["images_per_second"] = json!(123.5);
    std::fs::write(&kept, tuning.to_string()).unwrap();
    let app = setup.start();
    assert_eq!(shown(&app).await[3][0]["images_per_second"], 123.5);
    drop(app);

    // Another machine, and no result at all.
    tuning["of"]["cpu"] = json!("another");
    for text in [tuning.to_string(), "{".to_owned()] {
        std::fs::write(&kept, text).unwrap();
        let app = setup.start();
        assert_ne!(shown(&app).await[3][0]["images_per_second"], 123.5);
    }
}

#[tokio::test]
async fn what_was_found_is_how_the_model_runs_where_nothing_else_was_said() {
    let setup = Setup::new().config(|config| {
        (config.tune, config.sessions, config.threads, config.max_batch_size) = (true, None, None, None);
    });
    let app = setup.start();
    let shown = shown(&app).await;
    let measured = shown[3].as_array().unwrap();
    let fastest = measured.iter().map(|one| one["images_per_second"].as_f64().unwrap()).fold(0.0, f64::max);
    let chosen = measured
        .iter()
        .find(|one| one["sessions"] == shown[0] && one["threads"] == shown[1] && one["max_batch_size"] == shown[2]);
    assert!(chosen.unwrap()["images_per_second"].as_f64().unwrap() >= 0.95 * fastest, "{shown}");

    // Of images that are alone: with the threads of a session, and then with more as long as there are cores.
    let model = app.get("/v1/models/icons30").await.expect(200).json();
    let alone: Vec<(u64, f64)> = model["tuning_alone"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["threads"].as_u64().unwrap(), one["images_per_second"].as_f64().unwrap()))
        .collect();
    let threads = model["threads"].as_u64().unwrap();
    assert!(alone.is_empty() || (alone[0].0 == threads && alone.len() >= 2), "{model}");
    assert!(alone.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[1].1 > 0.0), "{model}");
    let lone_threads = model["lone_threads"].as_u64().unwrap();
    let gain = alone.iter().find(|one| one.0 == lone_threads).map_or(1.0, |one| one.1 / alone[0].1);
    assert!(lone_threads == threads || gain >= 0.95 * 1.25, "{model}");
    app.classify("", image("key", 0)).await.expect(200);
}

#[tokio::test]
async fn without_it_nothing_is_measured() {
    let app = Setup::new().start();
    assert_eq!(shown(&app).await, json!([1, 1, 4, null]));
}
