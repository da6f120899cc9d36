// What the server refuses most often, in Chinese: its English message, `{name}` for what varies, and
// how the page says it. What is not here is shown as it came.

export const chineseErrors = [
  ["portrait: no file was given; choose a picture", "请选择一张肖像图片"],
  ["speech: no file was given; choose a sound file or record one", "请选择录音文件，或用麦克风录音"],
  [
    "prompt: it is empty; describe the person, the action and the surroundings",
    "请描述人物、动作和环境",
  ],
  [
    "prompt: has {count} characters; at most {most} are accepted{more}",
    "描述有 {count} 个字符，最多 {most} 个",
  ],
  [
    "prompt: character {position} is a control character ({code}){more}",
    "描述的第 {position} 个字符是控制字符，请删除",
  ],
  ["portrait: is {kind}; expected a picture", "这个文件不是图片"],
  ["speech: is {kind}; expected a sound or video file", "这个文件不是声音"],
  ["the file is {kind}; expected a picture, a sound or a video", "文件格式不对：需要图片或声音"],
  [
    "the file is {kind}; expected a PNG, JPEG, WebP, TIFF, GIF or BMP picture",
    "不支持这种文件；请使用 PNG、JPEG、WebP、TIFF、GIF 或 BMP 图片",
  ],
  [
    "the file is {kind}; expected a WAV, MP3, FLAC, OGG or M4A sound, or a video",
    "不支持这种文件；请使用 WAV、MP3、FLAC、OGG、M4A 录音，或带声音的视频",
  ],
  ["the file is empty (0 bytes); choose another", "这是空文件；请另选一个"],
  ["the file is larger than {most} MB, the most that is accepted", "文件超过 {most} MB 的上限"],
  ["portrait '{name}' is empty (0 bytes){more}", "图片是空文件，请重新上传"],
  ["speech '{name}' is empty (0 bytes){more}", "录音是空文件，请重新上传"],
  [
    "portrait '{name}' is {kind}; the portrait must be a PNG, JPEG, WebP, TIFF, GIF or BMP picture",
    "这个文件不是可用的图片；请使用 PNG、JPEG、WebP、TIFF、GIF 或 BMP",
  ],
  [
    "portrait '{name}' is cut off, damaged or of a rare variant and cannot be read{more}",
    "图片不完整或已损坏，无法读取；请重新导出为 PNG",
  ],
  [
    "portrait '{name}' has {size} pixels; each side needs at least {least}, so give a larger picture",
    "图片只有 {size} 像素；每边至少需要 {least} 像素",
  ],
  [
    "portrait '{name}' has {size} pixels; at most {most} million are accepted{more}",
    "图片有 {size} 像素，最多 {most} 百万像素；请缩小后再上传",
  ],
  [
    "portrait '{name}' has {size} pixels, more than {times} times as long as wide{more}",
    "图片过于狭长（{size}）；请裁剪到人物",
  ],
  [
    "portrait '{name}' has {size} MB; at most {most} MB are accepted{more}",
    "图片有 {size} MB，最多 {most} MB；请压缩后再上传",
  ],
  [
    "speech '{name}' has {size} MB; at most {most} MB are accepted{more}",
    "录音有 {size} MB，最多 {most} MB；请截短或压缩后再上传",
  ],
  [
    "speech '{name}' holds no sound that can be decoded; export it again",
    "录音中没有可读取的声音；请重新导出",
  ],
  [
    "speech '{name}' is cut off or damaged: only {read} of {all} s can be read; upload it again",
    "录音不完整或已损坏：{all} 秒中只能读取 {read} 秒；请重新上传",
  ],
  [
    "speech '{name}' uses a codec this program cannot read; export it again as WAV or MP3",
    "不支持录音的编码；请重新导出为 WAV 或 MP3",
  ],
  [
    "{field}: takes too much time or memory to read, as damaged files do; export it again",
    "读取此文件耗时或占用内存过多，可能已损坏；请重新导出",
  ],
  [
    "speech '{name}' lasts {length} s; at least {least} s are needed",
    "录音只有 {length} 秒，至少需要 {least} 秒",
  ],
  ["too many requests; try again in {wait} s", "请求过于频繁；请在 {wait} 秒后重试"],
  ["too many uploads wait to be used; try again later", "等待使用的上传过多；请稍后再试"],
  ["speech '{name}' holds no sound; give a recording of the speech", "文件中没有声音；请上传语音录音"],
  [
    "speech '{name}' is cut off, damaged or not a sound file this program reads{more}",
    "录音不完整、已损坏或格式不支持；请重新导出为 WAV、MP3、FLAC、OGG 或 M4A",
  ],
  [
    "speech '{name}' lasts more than {most} s, the longest accepted{more}",
    "录音超过 {most} 秒的上限；请分成几段",
  ],
  [
    "{name}: expected a whole number from {low} to {high}, got {value}",
    "请填写 {low} 到 {high} 之间的整数",
  ],
  ["{name}: expected a whole number, got {value}", "请填写整数"],
  [
    "infer_frames: expected a multiple of 4 from {low} to {high}, got {value}; the nearest that work are {one} and {other}",
    "每段帧数须为 4 的倍数（{low} 到 {high}）；最接近的是 {one} 和 {other}",
  ],
  ["size: expected WIDTH*HEIGHT, got {value}", "尺寸请写成 宽*高，例如 688*368"],
  ["size: expected sides from {low} to {high}, got {value}", "尺寸每边须在 {low} 到 {high} 像素之间"],
  ['size: the tier "custom" needs one, such as 688*368', "请填写尺寸，例如 688*368"],
  [
    "you have {own} videos waiting or running, at most {most} are taken; wait for one to end or cancel it",
    "您已有 {own} 个视频在排队或生成，最多 {most} 个；请等待或取消其中一个",
  ],
  [
    "the queue is full, {all} videos wait or run; try again in a few minutes",
    "队列已满（{all} 个视频）；请几分钟后再试",
  ],
  ["the server is being stopped; submit again when it is back", "服务器正在停止；请在恢复后重新提交"],
  ["the server's disk is nearly full; no videos are taken now", "服务器磁盘将满，暂不接受新视频"],
  ["rank {rank} failed: {reason}; it failed twice", "第 {rank} 号进程出错：{reason}（已失败两次）"],
  ["{reason}; it failed twice", "{reason}（已失败两次）"],
  ["out of GPU memory; use a smaller size or more ranks", "显存不足；请选择更小的画质"],
  ["the server is busy reading other uploads; try again", "服务器正忙于读取其他上传；请稍后再试"],
];
