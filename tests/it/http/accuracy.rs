//! The model that ships, through the whole serving line.

use std::collections::BTreeMap;

use equipoise::{
    dataset::{Shot, parse_train_counts},
    evaluate::Evaluation,
    heads::Prediction,
};
use serde_json::Value;

use crate::app::{CLASSES, icons30, image, multipart, send, shared};

const HEADS: [&str; 5] = ["joint", "tau", "crt", "lws", "ncm"];

#[tokio::test]
async fn the_accuracy_of_the_served_model_is_the_one_that_it_was_shipped_with() {
    let read = |file: &str| std::fs::read_to_string(icons30().join(file)).unwrap();
    let labels: Vec<String> = read("labels.txt").lines().map(str::to_owned).collect();
    let counts = parse_train_counts(&read("train_counts.csv"), CLASSES).unwrap();
    let shots: Vec<Shot> = counts.iter().map(|&count| Shot::of(count)).collect();
    let mut evaluations = HEADS.map(|_| Evaluation::new(&shots));
    for (class, label) in labels.iter().enumerate() {
        let (content_type, body) = multipart(&(0..18).map(|index| image(label, index)).collect::<Vec<_>>());
        let path = format!("/v1/models/icons30/classify?head={}", HEADS.join(","));
        let answer = send(shared().post(&path).header("content-type", content_type).body(body)).await;
        for index in 0..18 {
            for (result, evaluation) in answer.results(index).iter().zip(&mut evaluations) {
                let prediction = |p: &Value| Prediction {
                    class: p["class"].as_u64().unwrap() as usize,
                    probability: p["probability"].as_f64().unwrap(),
                    logit: p["logit"].as_f64().unwrap(),
                };
                let best: Vec<Prediction> = result["predictions"].as_array().unwrap().iter().map(prediction).collect();
                evaluation.add(class, &best);
            }
        }
    }
    let shipped: BTreeMap<String, BTreeMap<String, f64>> = serde_json::from_str(&read("accuracy.json")).unwrap();
    for (head, evaluation) in HEADS.iter().zip(evaluations) {
        let report = serde_json::to_value(evaluation.report()).unwrap();
        for (group, expected) in &shipped[*head] {
            let found = report[group].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9, "{head} {group}: {found} instead of {expected}");
        }
    }
}
