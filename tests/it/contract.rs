//! The documentation held against the router and the table of errors: neither says what the other does not.

use std::collections::BTreeSet;

use equipoise::{
    access::Role,
    http::{NEEDS, Need, ROUTES},
};
use serde_json::{Value, json};

use crate::schema::violations;

const OPENAPI: &str = include_str!("../../src/http/openapi.json");
const PAGE: &str = include_str!("../../src/http/docs.html");
const API_GUIDE: &str = include_str!("../../docs/API.md");
const ERROR_TABLE: &str = include_str!("../../src/http/error.rs");

fn openapi() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// The second half of each `(S::STATUS, "code")` in the source of the table.
fn codes_of_the_table() -> BTreeSet<&'static str> {
    ERROR_TABLE
        .split("(S::")
        .skip(1)
        .filter_map(|after| {
            let (status, rest) = after.split_once(", \"")?;
            let is_status = status.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            is_status.then(|| rest.split_once('"').map(|(code, _)| code))?
        })
        .collect()
}

/// The values of the attribute that `start` opens.
fn attributes<'a>(page: &'a str, start: &str) -> BTreeSet<&'a str> {
    page.split(start).skip(1).filter_map(|after| after.split_once('"')).map(|(value, _)| value).collect()
}

/// Calls `visit` on every object inside `value`, `value` itself included.
fn each_object(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            visit(object);
            object.values().for_each(|value| each_object(value, visit));
        }
        Value::Array(values) => values.iter().for_each(|value| each_object(value, visit)),
        _ => {}
    }
}

#[test]
fn the_scan_of_the_error_table_finds_codes() {
    let codes = codes_of_the_table();
    assert!(codes.contains("invalid_json") && codes.contains("overloaded") && codes.len() > 30, "{codes:?}");
}

#[test]
fn openapi_has_the_routes_of_the_router_and_no_others() {
    let routed: BTreeSet<(String, String)> = ROUTES
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    let api = openapi();
    let mut documented = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            documented.insert((path.clone(), method.to_uppercase()));
        }
    }
    assert_eq!(documented, routed);
}

#[test]
fn the_page_and_the_guide_name_every_route() {
    for (path, methods) in ROUTES {
        for method in methods {
            let row = format!("<tr><td>{method}</td><td class=\"path mono\">{path}</td>");
            assert!(PAGE.contains(&row), "docs.html has no row for {method} {path}");
            let row = format!("| `{method} {path}` |");
            assert!(API_GUIDE.contains(&row), "docs/API.md has no row for {method} {path}");
        }
    }
}

#[test]
fn every_reference_in_openapi_resolves() {
    let api = openapi();
    let mut found = 0;
    each_object(&api, &mut |object| {
        if let Some(reference) = object.get("$ref") {
            let pointer = reference.as_str().and_then(|reference| reference.strip_prefix('#')).unwrap();
            assert!(api.pointer(pointer).is_some(), "{reference} leads nowhere");
            found += 1;
        }
    });
    assert!(found > 100, "only {found} references were found");
}

#[test]
fn every_example_of_openapi_is_as_its_schema_says() {
    let api = openapi();
    let mut n = 0;
    let mut wrong = Vec::new();
    each_object(&api, &mut |object| {
        let Some(schema) = object.get("schema") else { return };
        let named =
            object.get("examples").and_then(Value::as_object).into_iter().flat_map(|examples| examples.values());
        let named = named.map(|example| match example.get("$ref").and_then(Value::as_str) {
            Some(reference) => &api.pointer(reference.trim_start_matches('#')).unwrap()["value"],
            None => &example["value"],
        });
        for example in object.get("example").into_iter().chain(named) {
            wrong.extend(violations(&api, schema, example));
            n += 1;
        }
    });
    assert!(n > 100, "only {n} examples were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn openapi_says_of_every_route_of_a_model_what_its_layer_takes_and_answers() {
    let api = openapi();
    let codes = |response: &Value| -> Vec<String> {
        let response = match response["$ref"].as_str() {
            Some(reference) => api.pointer(reference.trim_start_matches('#')).unwrap(),
            None => response,
        };
        let mut codes = Vec::new();
        each_object(response, &mut |object| {
            let listed = object.get("code").and_then(|code| code["enum"].as_array());
            codes.extend(listed.into_iter().flatten().map(|code| code.as_str().unwrap().to_owned()));
        });
        codes
    };
    for (path, methods) in ROUTES {
        for method in methods {
            let operation = &api["paths"][path][method.to_lowercase()];
            let has = |status: &str, code: &str| codes(&operation["responses"][status]).contains(&code.to_owned());
            if path.starts_with("/v1/") || path.starts_with("/admin/v1/") {
                assert!(has("422", "invalid_query"), "{method} {path}: invalid_query");
            }
            if !path.contains("{model}") {
                continue;
            }
            assert!(has("422", "invalid_header"), "{method} {path}: invalid_header");
            assert!(has("404", "not_found"), "{method} {path}: not_found");
            assert!(has("503", "generation_not_reached"), "{method} {path}: generation_not_reached");
            let parameters = operation["parameters"].as_array().unwrap();
            let wanted = json!({ "$ref": "#/components/parameters/MinGeneration" });
            assert!(parameters.contains(&wanted), "{method} {path}: x-min-generation");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let header = answer["headers"].get("x-equipoise-generation");
                assert!(
                    !status.starts_with('2') || header.is_some(),
                    "{method} {path}: x-equipoise-generation of {status}"
                );
            }
        }
    }
}

#[test]
fn every_path_parameter_is_declared() {
    let api = openapi();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let declared: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|parameter| api.pointer(parameter["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap())
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            let in_path: BTreeSet<&str> =
                path.split('{').skip(1).filter_map(|after| after.split_once('}')).map(|(name, _)| name).collect();
            assert_eq!(declared, in_path, "{method} {path}");
        }
    }
}

#[test]
fn every_route_says_once_what_it_asks_of_its_caller() {
    let routed: Vec<(&str, &str)> =
        ROUTES.iter().flat_map(|(path, methods)| methods.iter().map(|method| (*method, *path))).collect();
    let with_needs: Vec<(&str, &str)> = NEEDS.iter().map(|(method, path, _)| (*method, *path)).collect();
    for route in &routed {
        assert_eq!(with_needs.iter().filter(|with| *with == route).count(), 1, "{route:?} in NEEDS");
    }
    assert_eq!(with_needs.len(), routed.len());
    for (method, path, need) in NEEDS {
        assert_eq!(matches!(need, Need::Always(_)), path.starts_with("/admin/"), "{method} {path}");
    }
}

#[test]
fn openapi_the_page_and_the_guide_say_what_every_route_asks_of_its_caller() {
    let api = openapi();
    for (method, path, need) in NEEDS {
        let security = &api["paths"][path][method.to_lowercase()]["security"];
        let (expected, on_page, in_guide) = match need {
            Need::Nothing => (Value::Null, None, "everybody".to_owned()),
            Need::IfClosed(role) => {
                (json!([{}, { "token": [role.as_str()] }]), None, format!("everybody, or `{role}`"))
            }
            Need::Always(role) => {
                (json!([{ "token": [role.as_str()] }]), Some(format!("({role})")), format!("`{role}`"))
            }
        };
        assert_eq!(*security, expected, "{method} {path}");
        let row = format!("<tr><td>{method}</td><td class=\"path mono\">{path}</td>");
        let row = PAGE.lines().find(|line| line.starts_with(&row)).unwrap();
        for role in Role::ALL {
            let said = format!("({role})");
            assert_eq!(row.contains(&said), on_page.as_ref() == Some(&said), "{row}");
        }
        let row = API_GUIDE.lines().find(|line| line.starts_with(&format!("| `{method} {path}` |"))).unwrap();
        assert!(row.ends_with(&format!("| {in_guide} |")), "{row}");
    }
}

#[test]
fn openapi_lists_the_codes_of_the_error_table_and_no_others() {
    let api = openapi();
    let listed = api["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    let listed: BTreeSet<&str> = listed.iter().map(|code| code.as_str().unwrap()).collect();
    assert_eq!(listed, codes_of_the_table());
}

#[test]
fn every_answer_of_openapi_with_an_error_names_codes_of_the_error_table() {
    let codes = codes_of_the_table();
    each_object(&openapi(), &mut |object| {
        // The schema of an error of one status.
        if let Some(listed) = object.get("code").and_then(|code| code.get("enum")) {
            for code in listed.as_array().unwrap() {
                assert!(codes.contains(code.as_str().unwrap()), "{code} is no code");
            }
        }
    });
}

#[test]
fn the_page_has_an_anchor_for_every_code() {
    let anchors = attributes(PAGE, "<tr id=\"");
    assert_eq!(anchors, codes_of_the_table());
}

#[test]
fn the_guide_has_a_row_for_every_code() {
    for code in codes_of_the_table() {
        let cell = format!("| `{code}` |");
        assert!(API_GUIDE.contains(&cell), "docs/API.md has no row for `{code}`");
    }
}

#[test]
fn the_guide_to_metrics_lists_every_status() {
    let guide = include_str!("../../docs/METRICS.md");
    let row = guide.lines().find(|line| line.starts_with("| `status` |")).unwrap();
    for operation in
        openapi()["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values())
    {
        for status in operation["responses"].as_object().unwrap().keys() {
            assert!(row.contains(&format!("`{status}`")), "{status}");
        }
    }
}

/// The first block of a guide in a language.
fn first_block<'a>(guide: &'a str, language: &str) -> &'a str {
    let (_, rest) = guide.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

#[test]
fn the_configuration_file_of_the_guide_is_read() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("equipoise.toml");
    std::fs::write(&file, first_block(include_str!("../../docs/OPERATIONS.md"), "toml")).unwrap();
    let mut options = equipoise::config::ServeOptions::default();
    options.config = Some(file);
    let options = options.with_file().unwrap();
    assert_eq!(options.models, [folder.path().join("models/mine")]);
    assert!(options.listen.is_some() && options.admin_listen.is_some() && options.log_format.is_some());
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    for foreign in ["http://", "https://", "src=\"", "@import", "url("] {
        assert!(!PAGE.contains(foreign), "docs.html has {foreign}");
    }
    for target in attributes(PAGE, "href=\"") {
        assert!(!target.starts_with("//"), "docs.html links to {target}");
    }
}

#[test]
fn the_page_puts_nothing_in_as_html() {
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "localStorage", "sessionStorage"] {
        assert!(!PAGE.contains(way), "docs.html uses {way}");
    }
}

#[test]
fn the_model_toml_of_the_guide_is_read() {
    let guide = include_str!("../../docs/MODEL.md");
    let toml = first_block(guide, "toml");
    let folder = tempfile::TempDir::new().unwrap();
    for file in ["labels.txt", "train_counts.csv"] {
        std::fs::copy(crate::app::icons30().join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("model.toml"), toml).unwrap();
    let read = equipoise::registry::ModelDirectory::read(folder.path()).unwrap();
    let shipped = equipoise::registry::ModelDirectory::read(&crate::app::icons30()).unwrap();
    assert_eq!((read.name, read.preprocess, read.labels), (shipped.name, shipped.preprocess, shipped.labels));
    assert_eq!(read.heads["tau"], shipped.heads["tau"]);
    // What stands in comments is no other key either.
    let uncommented =
        toml.replace("# pre_crop", "pre_crop").replace("exif_orientation = \"ignore\"", "exif_orientation = \"apply\"");
    std::fs::write(folder.path().join("model.toml"), uncommented).unwrap();
    equipoise::registry::ModelDirectory::read(folder.path()).unwrap();
}
