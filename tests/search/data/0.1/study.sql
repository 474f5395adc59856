PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO studies VALUES(1,'kept');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO version_info VALUES(1,12,'5.0.0');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO study_directions VALUES(1,'MAXIMIZE',1,0);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO study_user_attributes VALUES(1,1,'espalier:fingerprint','{"model.name": "espalier.pruning.networks:CifarResNet", "model.kwargs.depth": 8, "model.kwargs.width": 2, "model.kwargs.in_channels": 1, "model.kwargs.num_classes": 10, "data.name": "digits", "data.search_images": 300.0, "data.train_images": 256, "data.mean": null, "data.std": null, "data.augment.pad": 0, "data.augment.flip": false, "data.kwargs": {}, "training.epochs": 2.0, "training.batch_size": 32, "training.lr": 0.1, "training.momentum": 0.9, "training.weight_decay": 0.0005, "training.label_smoothing": 0.0, "training.warmup": 0.1, "training.precision": "fp32", "training.clip_norm": null, "regularizer.name": "oicsr_gl", "regularizer.strengths": [0.001, 0.01], "regularizer.start": "below", "regularizer.weighting": "none", "regularizer.with_norms": false, "regularizer.step": "subgradient", "regularizer.ramp": 0.0, "regularizer.epochs": 1.0, "regularizer.lr": 0.05, "budget.keep": 0.4, "budget.front": false, "budget.max_macs": null, "budget.keep_params": null, "budget.max_params": null, "budget.keep_memory": null, "budget.max_memory": null, "budget.min_width": 1, "budget.min_widths": {}, "budget.frozen": [], "budget.round_to": 1, "search.sampler": "cmaes", "search.space": "multipliers", "search.range": 1.5, "search.criterion": "energy", "search.normalization": "searched", "search.strength": "finetuned", "search.proxy": "recalibrated", "search.measure": "calibrated", "search.race": false, "search.scoring_images": 64, "search.calibration_images": 64, "search.batch_size": 64, "search.memory_format": "channels_last", "search.precision": "fp32", "search.agent.pretrained": null, "seed": 0, "weights": "espalier.pruning.networks:CifarResNet [(''depth'', 8), (''in_channels'', 1), (''num_classes'', 10), (''width'', 2)] seed 0", "data": "68ed9296396fd104", "graph": "fe52191241746909"}');
INSERT INTO study_user_attributes VALUES(2,1,'espalier:versions','{"python": "3.11.7", "espalier": "0.1.0", "torch": "2.13.0+cpu", "optuna": "5.0.0", "ray": "2.60.0", "numpy": "2.4.6"}');
INSERT INTO study_user_attributes VALUES(3,1,'espalier:network','{"macs": 12752, "groups": [["conv1", 2], ["layer1.0.conv1", 2], ["layer2.0.conv1", 4], ["layer3.0.conv1", 8], ["layer3.0.conv2", 4]]}');
INSERT INTO study_user_attributes VALUES(4,1,'espalier:config','{"model": {"name": "espalier.pruning.networks:CifarResNet", "weights": null, "kwargs": {"depth": 8, "width": 2, "in_channels": 1, "num_classes": 10}}, "data": {"name": "digits", "root": null, "search_images": 300.0, "train_images": 256, "mean": null, "std": null, "augment": {"pad": 0, "flip": false}, "kwargs": {}}, "training": {"epochs": 2.0, "batch_size": 32, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005, "label_smoothing": 0.0, "warmup": 0.1, "precision": "fp32", "clip_norm": null}, "regularizer": {"name": "oicsr_gl", "strengths": [0.001, 0.01], "start": "below", "weighting": "none", "with_norms": false, "step": "subgradient", "ramp": 0.0, "epochs": 1.0, "lr": 0.05}, "budget": {"keep": 0.4, "front": false, "max_macs": null, "keep_params": null, "max_params": null, "keep_memory": null, "max_memory": null, "min_width": 1, "min_widths": {}, "frozen": [], "round_to": 1}, "search": {"sampler": "cmaes", "space": "multipliers", "range": 1.5, "criterion": "energy", "normalization": "searched", "strength": "finetuned", "trials": 8, "proxy": "recalibrated", "measure": "calibrated", "ladder": [], "promote": 0.25, "race": false, "scoring_images": 64, "calibration_images": 64, "batch_size": 64, "memory_format": "channels_last", "precision": "fp32", "finalists": 2, "agent": {"pretrained": null}}, "prune": {"schedule": "rounds", "rounds": 3, "strength": null, "criterion": "energy", "normalization": "raw", "most": 0.5, "retrain": "finetune"}, "finetune": {"epochs": 0.5, "batch_size": 32, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.0005, "label_smoothing": 0.0, "warmup": 0.1, "precision": "fp32", "clip_norm": null, "seeds": 2, "halvings": 0}, "compare": {"methods": ["greedy", "uniform", "random", "auto"], "baseline": "greedy", "seeds": 5, "trials": null, "scratch_epochs": null, "latency_batch": 1}, "workers": 0, "cluster": {"address": null, "cpus_per_worker": 1.0, "gpus_per_worker": 0.0, "time_budget": null, "candidate_timeout": null, "max_failures": 20}, "seed": 0}');
INSERT INTO study_user_attributes VALUES(5,1,'espalier:place:laptop','{"out": "/tmp/runs/kept", "root": null, "weights": null}');
INSERT INTO study_user_attributes VALUES(6,1,'espalier:run:5cc85d9d4965','{"host": "laptop", "pid": 17041, "since": 1795417894.6333213, "renewed": 1795417895.7228954, "stage": "search", "done": 0, "total": 8, "unit": "candidates", "note": ""}');
INSERT INTO study_user_attributes VALUES(7,1,'espalier:checkpoints','["dfa043bfd354d9b2", "b8e766cdeee64037"]');
INSERT INTO study_user_attributes VALUES(8,1,'espalier:ladder','{"dense-c0bca631369e.safetensors": "08a428ba3386c240", "rung0-19ecd35475ff.safetensors": "dfa043bfd354d9b2", "rung1-d0c07230b51d.safetensors": "b8e766cdeee64037"}');
INSERT INTO study_user_attributes VALUES(9,1,'espalier:execution','{"batch_size": 64, "memory_format": "channels_last", "precision": "fp32"}');
INSERT INTO study_user_attributes VALUES(10,1,'espalier:strength:macs5100','{"0:1,1,2,6,3": 23.728813559322035, "0:2,1,1,2,2": 22.033898305084747, "1:1,1,2,6,3": 25.847457627118644, "1:2,1,1,2,2": 25.847457627118644}');
INSERT INTO study_user_attributes VALUES(11,1,'espalier:driver:2581b5fc2b68','{"host": "laptop", "pid": 17041, "renewed": 1795417895.6943936}');
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO trials VALUES(1,0,1,'COMPLETE','2026-11-23 07:11:35.736305','2026-11-23 07:11:35.762164');
INSERT INTO trials VALUES(2,1,1,'COMPLETE','2026-11-23 07:11:35.778716','2026-11-23 07:11:35.806138');
INSERT INTO trials VALUES(3,2,1,'COMPLETE','2026-11-23 07:11:35.809719','2026-11-23 07:11:35.854212');
INSERT INTO trials VALUES(4,3,1,'COMPLETE','2026-11-23 07:11:35.858922','2026-11-23 07:11:35.889668');
INSERT INTO trials VALUES(5,4,1,'COMPLETE','2026-11-23 07:11:35.897314','2026-11-23 07:11:35.932762');
INSERT INTO trials VALUES(6,5,1,'COMPLETE','2026-11-23 07:11:35.937243','2026-11-23 07:11:35.957924');
INSERT INTO trials VALUES(7,6,1,'RUNNING','2026-11-23 07:11:35.961256',NULL);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO trial_user_attributes VALUES(1,1,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(2,1,'espalier:candidate','"1:1,1,2,6,3"');
INSERT INTO trial_user_attributes VALUES(3,1,'espalier:score','{"top1": 21.875, "cross_entropy": 2.2504628514871, "seconds": 0.01233164700170164, "distillation": 0.2915649081260199, "calibrated": 2.1967283254537175, "signal": null, "images": 64, "against": ""}');
INSERT INTO trial_user_attributes VALUES(4,2,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(5,2,'espalier:candidate','"1:2,1,1,2,2"');
INSERT INTO trial_user_attributes VALUES(6,2,'espalier:score','{"top1": 21.875, "cross_entropy": 2.152339616790414, "seconds": 0.015199344998109154, "distillation": 0.2038404603372328, "calibrated": 2.144102809087875, "signal": null, "images": 64, "against": ""}');
INSERT INTO trial_user_attributes VALUES(7,3,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(8,3,'espalier:candidate','"1:2,1,1,1,4"');
INSERT INTO trial_user_attributes VALUES(9,3,'espalier:score','{"top1": 15.625, "cross_entropy": 2.229024013504386, "seconds": 0.015518660999077838, "distillation": 0.25674038400757127, "calibrated": 2.2127762858436393, "signal": null, "images": 64, "against": ""}');
INSERT INTO trial_user_attributes VALUES(10,4,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(11,4,'espalier:candidate','"1:1,2,1,6,1"');
INSERT INTO trial_user_attributes VALUES(12,4,'espalier:score','{"top1": 21.875, "cross_entropy": 2.1232895255088806, "seconds": 0.01353188499706448, "distillation": 0.19697894642013125, "calibrated": 2.1222686575726684, "signal": null, "images": 64, "against": ""}');
INSERT INTO trial_user_attributes VALUES(13,5,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(14,5,'espalier:candidate','"1:1,1,3,4,4"');
INSERT INTO trial_user_attributes VALUES(15,5,'espalier:score','{"top1": 28.125, "cross_entropy": 2.209843303076923, "seconds": 0.01660549699954572, "distillation": 0.2456557454133872, "calibrated": 2.1831652934111534, "signal": null, "images": 64, "against": ""}');
INSERT INTO trial_user_attributes VALUES(16,6,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(17,6,'espalier:candidate','"1:2,1,1,2,2"');
INSERT INTO trial_user_attributes VALUES(18,6,'espalier:score','{"top1": 21.875, "cross_entropy": 2.152339616790414, "seconds": 0.015199344998109154, "distillation": 0.2038404603372328, "calibrated": 2.144102809087875, "signal": null, "images": 64, "against": ""}');
INSERT INTO trial_user_attributes VALUES(19,7,'espalier:driver','"2581b5fc2b68"');
INSERT INTO trial_user_attributes VALUES(20,7,'espalier:candidate','"1:1,1,2,8,1"');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO trial_system_attributes VALUES(1,1,'fixed_params','{"normalization": 1.0, "evenness": 0.0, "conv1": 0.0, "layer1.0.conv1": 0.0, "layer2.0.conv1": 0.0, "layer3.0.conv1": 0.0, "layer3.0.conv2": 0.0}');
INSERT INTO trial_system_attributes VALUES(2,2,'fixed_params','{"normalization": 0.0, "evenness": 0.0, "conv1": 0.0, "layer1.0.conv1": 0.0, "layer2.0.conv1": 0.0, "layer3.0.conv1": 0.0, "layer3.0.conv2": 0.0}');
INSERT INTO trial_system_attributes VALUES(3,3,'espalier:sampler','0');
INSERT INTO trial_system_attributes VALUES(4,4,'espalier:sampler','0');
INSERT INTO trial_system_attributes VALUES(5,5,'espalier:sampler','0');
INSERT INTO trial_system_attributes VALUES(6,6,'espalier:sampler','0');
INSERT INTO trial_system_attributes VALUES(7,7,'espalier:sampler','0');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO trial_params VALUES(1,1,'normalization',1.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(2,1,'evenness',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(3,1,'conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(4,1,'layer1.0.conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(5,1,'layer2.0.conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(6,1,'layer3.0.conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(7,1,'layer3.0.conv2',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(8,2,'normalization',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(9,2,'evenness',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(10,2,'conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(11,2,'layer1.0.conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(12,2,'layer2.0.conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(13,2,'layer3.0.conv1',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(14,2,'layer3.0.conv2',0.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(15,3,'normalization',0.21709506680046891657,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(16,3,'evenness',0.074664569266072428055,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(17,3,'conv1',-0.35305351831778519766,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(18,3,'layer1.0.conv1',-0.41422276014969083846,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(19,3,'layer2.0.conv1',-0.10500048059514099918,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(20,3,'layer3.0.conv1',-0.19142505268352838498,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(21,3,'layer3.0.conv2',0.31965993540645532,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(22,4,'normalization',0.10219720293677572731,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(23,4,'evenness',0.21552355045369409047,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(24,4,'conv1',0.1595362612682449388,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(25,4,'layer1.0.conv1',1.3275989362646578584,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(26,4,'layer2.0.conv1',0.046461686937282031806,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(27,4,'layer3.0.conv1',0.85802766121663198717,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(28,4,'layer3.0.conv2',0.23556619313145388261,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(29,5,'normalization',0.15818662979516373567,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(30,5,'evenness',0.26994419600461527775,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(31,5,'conv1',-0.81404757616301770539,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(32,5,'layer1.0.conv1',0.097730262863675143591,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(33,5,'layer2.0.conv1',0.52363724132307076786,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(34,5,'layer3.0.conv1',0.39854869312226437472,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(35,5,'layer3.0.conv2',0.65190242050027880083,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(36,6,'normalization',0.46480586845489646474,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(37,6,'evenness',0.34669761614576966035,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(38,6,'conv1',0.018946720825239848906,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(39,6,'layer1.0.conv1',0.19720766990754778902,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(40,6,'layer2.0.conv1',-1.3736212678878081394,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(41,6,'layer3.0.conv1',-0.54064591026339936519,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(42,6,'layer3.0.conv2',-0.028811513515821562947,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(43,7,'normalization',0.25547493843349999842,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(44,7,'evenness',0.16706929961038824439,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params VALUES(45,7,'conv1',0.23489379531784848609,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(46,7,'layer1.0.conv1',0.14890768943803389667,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(47,7,'layer2.0.conv1',0.78897297473025407299,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(48,7,'layer3.0.conv1',1.0346755644426499642,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
INSERT INTO trial_params VALUES(49,7,'layer3.0.conv2',-0.65182535880399183891,'{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.5, "high": 1.5, "log": false}}');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO trial_values VALUES(1,1,0,-2.1967283254537175452,'FINITE');
INSERT INTO trial_values VALUES(2,2,0,-2.1441028090878750944,'FINITE');
INSERT INTO trial_values VALUES(3,3,0,-2.2127762858436392789,'FINITE');
INSERT INTO trial_values VALUES(4,4,0,-2.1222686575726683599,'FINITE');
INSERT INTO trial_values VALUES(5,5,0,-2.1831652934111533959,'FINITE');
INSERT INTO trial_values VALUES(6,6,0,-2.1441028090878750944,'FINITE');
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version VALUES('v3.2.0.a');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
