"""Who may call what: every RPC takes a role, and what has none here is denied to everybody."""

from __future__ import annotations

from envd.access.roles import Role

ROLES = {
    "/envd.v1.Environments/BuildEnvironment": Role.BUILD,
    "/envd.v1.Environments/CancelBuild": Role.BUILD,
    "/envd.v1.Environments/DeleteEnvironment": Role.ADMIN,
    "/envd.v1.Environments/GetEnvironment": Role.PREDICT,
    "/envd.v1.Environments/ListEnvironments": Role.PREDICT,
    "/envd.v1.Environments/PinEnvironment": Role.ADMIN,
    "/envd.v1.Environments/PurgeEnvironments": Role.ADMIN,
    "/envd.v1.Environments/ResolveSpec": Role.PREDICT,
    "/envd.v1.Environments/UnpinEnvironment": Role.ADMIN,
    "/envd.v1.Environments/VerifyEnvironment": Role.ADMIN,
    "/envd.v1.Environments/WatchEnvironment": Role.PREDICT,
    "/envd.v1.Predictions/GetModel": Role.PREDICT,
    "/envd.v1.Predictions/ListModels": Role.PREDICT,
    # Any model but those of the settings is an admin's (`envd.serve.model_handlers`).
    "/envd.v1.Predictions/LoadModel": Role.PREDICT,
    "/envd.v1.Predictions/ListWorkers": Role.PREDICT,
    "/envd.v1.Predictions/Predict": Role.PREDICT,
    "/envd.v1.Predictions/PredictStream": Role.PREDICT,
    "/envd.v1.Predictions/RestartWorker": Role.ADMIN,
    "/envd.v1.Predictions/UnloadModel": Role.PREDICT,
    "/grpc.health.v1.Health/Check": Role.PREDICT,
    "/grpc.health.v1.Health/List": Role.PREDICT,
    "/grpc.health.v1.Health/Watch": Role.PREDICT,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.ADMIN,
    "/inference.GRPCInferenceService/ModelConfig": Role.PREDICT,
    "/inference.GRPCInferenceService/ModelInfer": Role.PREDICT,
    "/inference.GRPCInferenceService/ModelMetadata": Role.PREDICT,
    "/inference.GRPCInferenceService/ModelReady": Role.PREDICT,
    "/inference.GRPCInferenceService/ModelStreamInfer": Role.PREDICT,
    "/inference.GRPCInferenceService/RepositoryIndex": Role.PREDICT,
    "/inference.GRPCInferenceService/ServerLive": Role.PREDICT,
    "/inference.GRPCInferenceService/ServerMetadata": Role.PREDICT,
    "/inference.GRPCInferenceService/ServerReady": Role.PREDICT,
    # As LoadModel and UnloadModel.
    "/inference.GRPCInferenceService/RepositoryModelLoad": Role.PREDICT,
    "/inference.GRPCInferenceService/RepositoryModelUnload": Role.PREDICT,
}

# Whoever balances load has no credential: where there are any, these need none. That of a model
# does, by whose name one could be guessed.
HEALTH = "/grpc.health.v1.Health/Check"
# What a line is written for, whoever did it.
AUDITED = {method for method, role in ROLES.items() if role is Role.ADMIN} | {
    "/envd.v1.Predictions/LoadModel",
    "/envd.v1.Predictions/UnloadModel",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
}
