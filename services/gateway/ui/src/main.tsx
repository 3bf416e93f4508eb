import { render } from "preact";
import { refreshModels } from "./api/models";
import { App } from "./app";
import { loadConversations } from "./chat/store";
import { startPolling } from "./pulse/poll";
import "./settings/appearance";
import "./style/page.css";

render(<App />, document.getElementById("page")!);
void loadConversations();
void refreshModels();
startPolling();
